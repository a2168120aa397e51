"""The two phases of one packing: every unit to tokens, by one backend; all tokens to rows."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from giraffe_cli import __version__
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.agreement import check_backends, tokenise_alike
from giraffe_cli.corpus.assemble import assemble
from giraffe_cli.corpus.changes import changed
from giraffe_cli.corpus.corpus_index import CorpusIndex, read_index
from giraffe_cli.corpus.held_out_file import held_documents
from giraffe_cli.corpus.holdout import rank
from giraffe_cli.corpus.pack_knobs import check_knobs, check_shares
from giraffe_cli.corpus.shares import check_weights
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.corpus.stats import listed, skipped_in, warnings_of
from giraffe_cli.corpus.store import KIND, STATS, clear_rows, clear_work
from giraffe_cli.corpus.tools import Tools, unit_inputs
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import has_blocks, read_done, unit_folder
from giraffe_cli.errors import InvalidInput
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

FORMAT_VERSION = 3
"""Counts changes of what is written, so that folders of an older giraffe are packed again."""
_WITHOUT_EFFECT = {"backend"}
"""Knobs that change speed and not a byte."""


class Packing:
    """One packing: what goes in, found and checked once; then its phases."""

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
        check_knobs(config, window)
        if not (out / MANIFEST).exists():  # what an earlier version packed so stands
            check_shares(config)
        self.config, self.window, self.seed = config, window, seed
        self.out, self.work, self.reporter = out, out / WORK, reporter
        self.tools = Tools.of(checkpoint_path, config)
        if self.tools.tokenize.fallback:
            reporter.warn(f"{self.tools.tokenize.fallback}; tokenizers is used")
        self.units = resolve(sources, config, self.work)
        check_weights(config.mix, list(dict.fromkeys(unit.source for unit in self.units)))
        self._unit_inputs: dict[int, dict[str, Any]] = {}

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """What decides the rows, for the manifest; reads every file of the corpus once."""
        return {
            "version": FORMAT_VERSION,
            "sources": _source_digests(self.units, self._inputs_of(range(len(self.units)))),
            "tokenizer": self.tools.inputs["tokenizer"],
            "tokens_policy": self.tools.tokenize.policy,
            "window": self.window,
            "config": self.config.model_dump(mode="json", exclude=_without_effect(self.config)),
            "decontaminate": self.tools.inputs["decontaminate"],
            "seed": self.seed,
        }

    def holds(self) -> bool:
        """Whether the rows of these inputs are there; reads the corpus only where some are."""
        return (self.out / MANIFEST).exists() and stage_holds(self.out, self.inputs)

    def _inputs_of(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The identity of each of the units `numbers`, whose bytes are read once: a shard reads no
        more than its own."""
        for number in numbers:
            if number not in self._unit_inputs:
                self._unit_inputs[number] = unit_inputs(self.units[number], self.tools)
        return [self._unit_inputs[number] for number in numbers]

    def tokenise(self, numbers: Sequence[int], workers: int) -> list[dict[str, Any]]:
        """The first phase of the units `numbers`; all of them by one backend.

        Raises:
            GiraffeError: a file is not what it was when the packing began.
        """
        make_folder(self.work)
        expected = self._inputs_of(numbers)
        done, self.tools = tokenise_alike(
            self.units, numbers, self.work, self.tools, workers, self.reporter
        )
        for number, entry, begun in zip(numbers, done, expected, strict=True):
            if entry["inputs"] != begun:
                raise changed(f"{self.units[number].name} of {self.units[number].source}")
        return done

    def _keep_one(self, index: CorpusIndex) -> None:
        """When every document is held out, train on the one of the highest hash after all."""
        held = held_documents(self.units, index, self.work)
        kept = max((identity for identity, _ in held), key=rank)
        self.tools = Tools.of(self.tools.tokenize.folder, self.config, kept)
        self._unit_inputs.clear()
        self.tokenise(range(len(self.units)), 1)

    def assemble(self) -> dict[str, Any]:
        """The second phase: rows, statistics, and the manifest last."""
        everything = range(len(self.units))
        index = read_index(self.units, self.work, self._inputs_of(everything))
        if not len(index.lengths) and any(unit["held"] for unit in index.units):
            self._keep_one(index)
            index = read_index(self.units, self.work, self._inputs_of(everything))
        check_backends(self.units, index.units)
        _check_any_to_train_on(index)
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

    def drop_input(self) -> None:
        """Remove what was kept of standard input."""
        for path in self.work.glob("stdin.*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # none, or it holds what shards tokenised
            self.work.rmdir()

    def leave(self) -> None:
        """After an error, finished units and blocks stay for the next try, and rows that were there
        before and that nothing has taken the place of; else nothing."""
        holds_tokens = False
        for number in range(len(self.units)):
            folder = unit_folder(self.work, number)
            if done := read_done(folder):
                holds_tokens |= bool(done["documents"] or done["held"])
            elif has_blocks(folder):
                holds_tokens = True
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if not holds_tokens:
            clear_work(self.out)
        if (self.out / MANIFEST).exists() and not stage_holds(self.out, self.inputs):
            return
        if holds_tokens:
            clear_rows(self.out)
        else:
            shutil.rmtree(self.out, ignore_errors=True)

    def finished(self) -> dict[str, Any]:
        """The stats of what is there, with what the user should know of it.

        Tokens go that a shard wrote after the rows were finished.
        """
        clear_work(self.out)
        stats: dict[str, Any] = read_json(self.out / STATS)
        for warning in warnings_of(stats):
            self.reporter.warn(warning)
        if self.config.hold_out > 0 and not stats["documents_held_out"]:
            self.reporter.warn(f"{_why_none(stats)}: none is held out for evaluation")
        return stats


def _without_effect(config: PackConfig) -> set[str]:
    """Knobs that change no byte: windows without look-ups are those of a giraffe that had none."""
    return _WITHOUT_EFFECT | (set() if config.lookups else {"lookups"})


def _why_none(stats: dict[str, Any]) -> str:
    """What the documents of a corpus are alike in, where none could be held out."""
    if stats["documents"] == 1:
        return "the corpus is one document"
    return f"all {stats['documents']:,} documents have one `id`, or one text"


def _check_any_to_train_on(index: CorpusIndex) -> None:
    """Raises InvalidInput where there is nothing, with where the documents went."""
    if len(index.lengths):
        return
    skipped = listed(skipped_in(index.units)) or "none"
    raise InvalidInput(
        f"no documents in {', '.join(index.names)}; skipped: {skipped}",
        "name a corpus that holds text",
    )


def _source_digests(units: list[Unit], inputs: list[dict[str, Any]]) -> dict[str, str]:
    """One digest a source, over the bytes of its units."""
    raw: dict[str, list[str]] = {}
    for unit, entry in zip(units, inputs, strict=True):
        raw.setdefault(unit.source, []).append(entry["raw"])
    return {name: digest_value(digests) for name, digests in raw.items()}
