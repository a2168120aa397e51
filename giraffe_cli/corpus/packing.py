"""The pack stage: sources → units → tokens on disk → windows → rows.

`pack_stage` does it in one go; `pack_shard` does the tokens of every N-th unit, for any scheduler,
and `merge_shards` the rest. All ways write the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from giraffe_cli import __version__
from giraffe_cli.config.building import differing_keys
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.assemble import assemble
from giraffe_cli.corpus.base import Unit
from giraffe_cli.corpus.changes import changed
from giraffe_cli.corpus.corpus_index import read_index
from giraffe_cli.corpus.holdout import rank
from giraffe_cli.corpus.pace import Pace
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.corpus.stats import warnings_of
from giraffe_cli.corpus.store import (
    KIND,
    STATS,
    check_replaceable,
    clear_rows,
    clear_work,
    is_packed,
)
from giraffe_cli.corpus.tokenising import tokenise_unit
from giraffe_cli.corpus.tokens import tokenizer_digest
from giraffe_cli.corpus.tools import Tools, unit_inputs
from giraffe_cli.corpus.unit_files import HELD, read_done, unit_folder
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.lock import held
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import (
    MANIFEST,
    WORK,
    digest_value,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
)

__all__ = ["merge_shards", "pack_shard", "pack_stage", "tokenizer_digest"]

FORMAT_VERSION = 2
"""Counts changes of what is written, so that folders of an older giraffe are packed again."""
_WITHOUT_EFFECT = {"backend"}
"""Knobs that change speed and not a byte."""


def pack_stage(
    sources: list[str],
    checkpoint_path: Path,
    window: int,
    config: PackConfig,
    seed: int,
    out: Path,
    reporter: Reporter,
    *,
    replace: bool = True,
    workers: int = 1,
) -> dict[str, Any]:
    """Pack `sources` into windows of at most `window` tokens under `out`; returns its stats.

    `checkpoint_path` is a folder with `tokenizer.json`. Does nothing when `out` holds the rows of
    the same sources, tokenizer, window, config and seed; rows of other inputs are
    packed again under `replace`, and refused without it. A packing that was cut off goes on with
    the units that are finished.

    Raises:
        InvalidInput: a source, a record or the tokenizer cannot be used; nothing to train on;
            `out` holds rows of other inputs.
        UsageError: a source named twice, knobs that contradict each other, or `out` holds
            files of something else.
        GiraffeError: `out` cannot be written; nothing half-written stays.
    """
    check_replaceable(out)
    with held(out):
        job = _Job(sources, checkpoint_path, window, config, seed, out, reporter)
        if stage_holds(out, job.inputs):
            reporter.info(f"{out} holds these windows already")
            return job.finished()
        if not replace and is_packed(out):
            _refuse(out, job.inputs)
        try:
            done = job.tokenise(range(len(job.units)), workers)
            if not any(entry["documents"] for entry in done):
                job.keep_one()
            return job.assemble()
        except Exception:
            job.leave()
            raise


def pack_shard(
    sources: list[str],
    checkpoint_path: Path,
    window: int,
    config: PackConfig,
    seed: int,
    out: Path,
    reporter: Reporter,
    *,
    shard: tuple[int, int],
    workers: int = 1,
) -> dict[str, Any]:
    """Tokenise the units i, i + N, i + 2N … of shard i/N into `out`; what it did.

    Raises:
        InvalidInput, UsageError, GiraffeError: as `pack_stage`; finished units stay.
    """
    check_replaceable(out)
    with held(out, shared=True):
        job = _Job(sources, checkpoint_path, window, config, seed, out, reporter)
        number, count = shard
        mine = range(number - 1, len(job.units), count)
        done = job.tokenise(mine, workers)
    return {
        "shard": f"{number}/{count}",
        "units": [f"{job.units[n].source}: {job.units[n].name}" for n in mine],
        "units_in_all": len(job.units),
        "documents": sum(entry["documents"] + entry["held"] for entry in done),
        "tokens": sum(entry["tokens"] for entry in done),
        "skipped": _added(entry["skipped"] for entry in done),
    }


def merge_shards(
    sources: list[str],
    checkpoint_path: Path,
    window: int,
    config: PackConfig,
    seed: int,
    out: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Rows from what the shards tokenised in `out`; returns its stats.

    Raises:
        InvalidInput: a unit is missing, altered or of other inputs; it is named.
        GiraffeError: `out` cannot be written.
    """
    check_replaceable(out)
    with held(out):
        job = _Job(sources, checkpoint_path, window, config, seed, out, reporter)
        if stage_holds(out, job.inputs):
            reporter.info(f"{out} holds these windows already")
            return job.finished()
        return job.assemble()


class _Job:
    """One packing: what goes in, found and checked once."""

    def __init__(
        self,
        sources: list[str],
        checkpoint_path: Path,
        window: int,
        config: PackConfig,
        seed: int,
        out: Path,
        reporter: Reporter,
    ) -> None:
        _check(config, window)
        self.config, self.window, self.seed = config, window, seed
        self.out, self.work, self.reporter = out, out / WORK, reporter
        self.tools = Tools.of(checkpoint_path, config)
        if self.tools.tokenize.fallback:
            reporter.warn(f"{self.tools.tokenize.fallback}; tokenizers is used")
        self.units = resolve(sources, config, self.work)
        self.unit_inputs = [unit_inputs(unit, self.tools) for unit in self.units]
        self.inputs = {
            "version": FORMAT_VERSION,
            "sources": _source_digests(self.units, self.unit_inputs),
            "tokenizer": tokenizer_digest(checkpoint_path),
            "window": window,
            "config": config.model_dump(mode="json", exclude=_WITHOUT_EFFECT),
            "decontaminate": self.tools.inputs["decontaminate"],
            "seed": seed,
        }

    def tokenise(self, numbers: Sequence[int], workers: int) -> list[dict[str, Any]]:
        """The first phase of the units `numbers`; all of them by one backend.

        Raises:
            GiraffeError: a file is not what it was when the packing began.
        """
        make_folder(self.work)
        done = self._run(numbers, workers)
        backends = sorted({entry["backend"] for entry in done})
        disagreements = [entry["fallback"] for entry in done if entry["fallback"]]
        # Two backends without a disagreement: a packing was cut off while it fell back.
        reason = disagreements[0] if disagreements else f"units are by {' and '.join(backends)}"
        if len(backends) > 1:
            self.reporter.warn(f"{reason}; everything is tokenised again by tokenizers")
            slow = self.config.model_copy(update={"backend": "tokenizers"})
            self.tools = Tools.of(self.tools.tokenize.folder, slow, self.tools.kept)
            for number in numbers:
                shutil.rmtree(unit_folder(self.work, number))
            done = self._run(numbers, workers)
        elif disagreements:
            self.reporter.warn(f"{reason}; tokenizers is used")
        for number, entry in zip(numbers, done, strict=True):
            if entry["inputs"] != self.unit_inputs[number]:
                raise changed(f"{self.units[number].name} of {self.units[number].source}")
        return done

    def keep_one(self) -> None:
        """When every document is held out, train on the one of the highest hash after all."""
        held = [
            json.loads(line)["id"]
            for number in range(len(self.units))
            for line in (unit_folder(self.work, number) / HELD).read_bytes().splitlines()
        ]
        if not held:
            return
        kept = max(held, key=rank)
        self.tools = Tools.of(self.tools.tokenize.folder, self.config, kept)
        self.unit_inputs = [unit_inputs(unit, self.tools) for unit in self.units]
        self.tokenise(range(len(self.units)), 1)

    def assemble(self) -> dict[str, Any]:
        """The second phase: rows, statistics, and the manifest last."""
        index = read_index(self.units, self.work, self.unit_inputs)
        _check_backends(self.units, index.units)
        held = sum(unit["held"] for unit in index.units)
        if held and not len(index.lengths):
            raise InvalidInput(
                f"all {held} documents are held out for evaluation", "lower --hold-out"
            )
        if not held and not len(index.lengths):
            skipped = _added(unit["skipped"] for unit in index.units)
            raise InvalidInput(
                f"no documents in {', '.join(index.names)}; skipped: {skipped or 'none'}",
                "name a corpus that holds text",
            )
        clear_rows(self.out)
        stats, layout = assemble(
            self.units,
            index,
            self.work,
            self.tools,
            self.window,
            self.seed,
            self.out,
            self.reporter,
        )
        clear_work(self.out)
        finish_stage(
            self.out,
            self.inputs,
            kind=KIND,
            window=self.window,
            layout=asdict(layout),
            backend=stats["tokenizer_backend"],
            giraffe=__version__,
        )
        return self.finished()

    def leave(self) -> None:
        """After an error while tokenising, finished units stay for the next try; else nothing."""
        finished = [n for n in range(len(self.units)) if read_done(unit_folder(self.work, n))]
        if len(finished) in (0, len(self.units)):
            shutil.rmtree(self.out, ignore_errors=True)
            return
        clear_rows(self.out)
        for number in set(range(len(self.units))) - set(finished):
            shutil.rmtree(unit_folder(self.work, number), ignore_errors=True)

    def finished(self) -> dict[str, Any]:
        """The stats of what is there, with what the user should know of it.

        Tokens go that a shard wrote after the rows were finished.
        """
        clear_work(self.out)
        stats: dict[str, Any] = read_json(self.out / STATS)
        for warning in warnings_of(stats):
            self.reporter.warn(warning)
        if self.config.hold_out > 0 and not stats["documents_held_out"]:
            self.reporter.warn("the corpus is one document: none is held out for evaluation")
        return stats

    def _run(self, numbers: Sequence[int], workers: int) -> list[dict[str, Any]]:
        total = sum(self.units[number].size for number in numbers) / 1e6
        with self.reporter.bar("tokenising", total, "MB") as bar:
            pace = Pace(bar)
            if workers == 1 or len(numbers) < 2:
                return [
                    tokenise_unit(self.units[n], unit_folder(self.work, n), self.tools, pace)
                    for n in numbers
                ]
            done = []
            for entry, number in self._in_processes(numbers, workers):
                pace.advance(self.units[number].size / 1e6, entry["tokens"])
                done.append(entry)
            return done

    def _in_processes(
        self, numbers: Sequence[int], workers: int
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """`done.json` of each unit in order, tokenised by `workers` processes.

        Raises:
            GiraffeError: what a worker raised.
        """
        import concurrent.futures  # here: it brings ssl, which one process does not need
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        tokenizer, config = str(self.tools.tokenize.folder), self.tools.config.model_dump()
        with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
            futures = [
                pool.submit(_work, self.units[n], str(unit_folder(self.work, n)), tokenizer, config)
                for n in numbers
            ]
            try:
                for number, future in zip(numbers, futures, strict=True):
                    kind, value = future.result()
                    if kind != "done":
                        raise _raised(kind, value)
                    yield value, number
            finally:
                pool.shutdown(cancel_futures=True)


def _work(unit: Unit, folder: str, tokenizer: str, config: dict[str, Any]) -> tuple[str, Any]:
    """In a worker process: ("done", `done.json`), or an error's class and words."""
    try:
        tools = Tools.of(Path(tokenizer), PackConfig(**config))
        return "done", tokenise_unit(unit, Path(folder), tools)
    except GiraffeError as error:
        return type(error).__name__, (error.message, error.hint)


def _raised(kind: str, value: tuple[str, str | None]) -> GiraffeError:
    kinds = {error.__name__: error for error in (InvalidInput, UsageError, GiraffeError)}
    return kinds.get(kind, GiraffeError)(*value)


def _check(config: PackConfig, window: int) -> None:
    """Refuse knobs that contradict each other or do nothing.

    Raises:
        UsageError: the first of them.
    """
    overlap = config.overlap or 0
    if config.min_piece > window:
        raise UsageError(
            f"min_piece {config.min_piece} is longer than the window of {window} tokens",
            "lower --min-piece or pass a longer --window",
        )
    if overlap >= window:
        raise UsageError(
            f"overlap {overlap} is not shorter than the window of {window} tokens",
            "lower --overlap",
        )
    if overlap and config.rule == "concat":
        raise UsageError(
            "overlap has no effect under rule concat, which cuts anywhere", "leave --overlap out"
        )
    if config.drop_tail and config.rule != "one":
        raise UsageError(
            f"drop_tail has no effect under rule {config.rule}", "pass --rule one, or leave it out"
        )


def _check_backends(units: list[Unit], done: list[dict[str, Any]]) -> None:
    """Refuse shards of which one found that its fast backend disagrees, and another did not.

    Raises:
        InvalidInput: units of the others are named.
    """
    fell_back = [entry for entry in done if entry["fallback"]]
    others = [
        f"{unit.name} of {unit.source} by {entry['backend']}"
        for unit, entry in zip(units, done, strict=True)
        if fell_back and entry["backend"] != fell_back[0]["backend"]
    ]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        raise InvalidInput(
            f"{fell_back[0]['fallback']}; tokenised are {', '.join(others[:5])}{more}",
            "run the --shard that holds them again, with --backend tokenizers",
        )


def _refuse(out: Path, inputs: dict[str, Any]) -> None:
    different = differing_keys(read_json(out / MANIFEST)["inputs"], inputs)
    raise InvalidInput(
        f"{out} holds windows of other inputs; different: {', '.join(different) or 'a file in it'}",
        f"choose another --out, or remove {out}",
    )


def _source_digests(units: list[Unit], inputs: list[dict[str, Any]]) -> dict[str, str]:
    """One digest a source, over the bytes of its units."""
    raw: dict[str, list[str]] = {}
    for unit, entry in zip(units, inputs, strict=True):
        raw.setdefault(unit.source, []).append(entry["raw"])
    return {name: digest_value(digests) for name, digests in raw.items()}


def _added(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for entry in counts:
        for reason, count in entry.items():
            total[reason] = total.get(reason, 0) + count
    return total
