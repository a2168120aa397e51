"""The pack stage: sources → units → tokens on disk → windows → rows.

`pack_stage` does it in one go; `pack_shard` does the tokens of every N-th unit, for any scheduler,
and `merge_shards` the rest. All ways write the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from giraffe_cli.config.building import differing_keys
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.phases import Packing
from giraffe_cli.corpus.stats import skipped_in
from giraffe_cli.corpus.store import check_replaceable, is_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.lock import held
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import MANIFEST, read_json


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
        packing = Packing(sources, checkpoint_path, window, config, seed, out, reporter)
        if packing.holds():
            reporter.info(f"{out} holds these windows already")
            return packing.finished()
        if not replace and is_packed(out):
            _refuse(packing)
        try:
            packing.tokenise(range(len(packing.units)), workers)
            return packing.assemble()
        except Exception:
            packing.leave()
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
    """Tokenise the units i, i + N, i + 2N … of shard i/N into `out`; what it did: nothing, and
    `finished`, where the rows of all shards are there.

    Raises:
        InvalidInput, UsageError, GiraffeError: as `pack_stage` without `replace`; finished units
            stay.
    """
    check_replaceable(out)
    with held(out, shared=True):
        packing = Packing(sources, checkpoint_path, window, config, seed, out, reporter)
        number, count = shard
        mine = range(number - 1, len(packing.units), count)
        done: list[dict[str, Any]] = []
        if finished := packing.holds():
            reporter.info(f"{out} holds these windows already")
            packing.drop_input()
            mine = range(0)
        elif is_packed(out):
            _refuse(packing)
        else:
            done = packing.tokenise(mine, workers)
    return {
        "finished": finished,
        "shard": f"{number}/{count}",
        "units": [f"{packing.units[n].source}: {packing.units[n].name}" for n in mine],
        "units_in_all": len(packing.units),
        "documents": sum(entry["documents"] + entry["held"] for entry in done),
        "tokens": sum(entry["tokens"] for entry in done),
        "skipped": skipped_in(done),
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
        InvalidInput: a unit is missing, altered or of other inputs, and named; or `out` holds rows
            of other inputs.
        GiraffeError: `out` cannot be written.
    """
    check_replaceable(out)
    with held(out):
        packing = Packing(sources, checkpoint_path, window, config, seed, out, reporter)
        if packing.holds():
            reporter.info(f"{out} holds these windows already")
            return packing.finished()
        if is_packed(out):
            _refuse(packing)
        return packing.assemble()


def _refuse(packing: Packing) -> None:
    out = packing.out
    packing.drop_input()
    different = differing_keys(read_json(out / MANIFEST)["inputs"], packing.inputs)
    raise InvalidInput(
        f"{out} holds windows of other inputs; different: {', '.join(different) or 'a file in it'}",
        "put back what changed, or choose another --out",
    )
