"""The first phase of packing: a unit's documents → token ids on disk. Any process, any order.

What is written is a function of the unit and the config alone. A unit whose `done.json` holds is
not read again; of one that was cut off, the blocks that hold are not tokenised again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.backends import Disagreement
from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.blocks import UnitWriter
from giraffe_cli.corpus.changes import Changed, unchanged
from giraffe_cli.corpus.held_documents import HeldOut
from giraffe_cli.corpus.pace import Pace, UnitProgress
from giraffe_cli.corpus.sources import reader_of
from giraffe_cli.corpus.tokens import DocumentTokenizer
from giraffe_cli.corpus.tools import Tools, unit_inputs
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import CANDIDATE, DONE, HELD, read_done
from giraffe_cli.lock import held
from giraffe_cli.rundir import (
    LOCK,
    atomic_open,
    digest_file,
    digest_value,
    make_folder,
    write_sealed,
)

BATCH_BYTES = 4 << 20
"""Text that is tokenised at a time; fastokens needs no more for its full speed."""


def tokenise_unit(
    unit: Unit, folder: Path, tools: Tools, pace: Pace | None = None
) -> dict[str, Any]:
    """`done.json` of the unit: as it is when it holds, else after tokenising what is missing.

    A unit of another backend than the one asked for by name does not hold. Where fastokens
    disagrees with tokenizers, all of the unit is done with the latter.

    Raises:
        InvalidInput: a bad record under `fail`, a file that cannot be read.
        GiraffeError: a file changed while it was read, or `folder` cannot be written.
    """
    inputs = unit_inputs(unit, tools)
    done, asked = read_done(folder, inputs), tools.config.backend
    if done is not None and (asked == "auto" or done["backend"].startswith(asked)):
        return done
    with held(make_folder(folder)):
        return _tokenise_by_either(unit, folder, tools, inputs, pace)


def _tokenise_by_either(
    unit: Unit, folder: Path, tools: Tools, inputs: dict[str, Any], pace: Pace | None
) -> dict[str, Any]:
    """By the backend of `tools`, or by tokenizers where that one disagrees with it."""
    (folder / DONE).unlink(missing_ok=True)
    fallback = None
    try:
        return _tokenise(unit, folder, tools, inputs, fallback, pace)
    except Disagreement as error:
        fallback = str(error)
    tokenize = tools.tokenize
    slow = DocumentTokenizer(tokenize.folder, "tokenizers", tools.config.bos, tools.config.eos)
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()
    return _tokenise(unit, folder, replace(tools, tokenize=slow), inputs, fallback, None)


def _tokenise(
    unit: Unit,
    folder: Path,
    tools: Tools,
    inputs: dict[str, Any],
    fallback: str | None,
    pace: Pace | None,
) -> dict[str, Any]:
    bad = BadRecords(tools.config.on_bad)
    identity = digest_value({**inputs, "backend": tools.tokenize.backend})
    with (
        _without_blocks_of_a_changed_file(folder),
        unchanged([unit]),
        atomic_open(folder / HELD) as lines,
        atomic_open(folder / CANDIDATE) as candidates,
        contextlib.closing(UnitWriter(folder, tools, identity)) as writer,
    ):
        apart = HeldOut(lines, candidates, tools.config.hold_out, tools.kept)
        _read(unit, tools.config, bad, apart, writer, UnitProgress(pace, unit.size))
    done = {
        "inputs": inputs,
        "backend": tools.tokenize.backend,
        "fallback": fallback,
        "dtype": np.dtype(tools.tokenize.dtype).name,
        "blocks": writer.blocks,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "held": apart.documents,
        "held_hashes": apart.hashes,
        "candidate": apart.candidate,
        "skipped": bad.skipped,
        "skipped_records": bad.named,
        "files": writer.files | {name: digest_file(folder / name) for name in (HELD, CANDIDATE)},
    }
    write_sealed(folder / DONE, done)
    return done


@contextlib.contextmanager
def _without_blocks_of_a_changed_file(folder: Path) -> Iterator[None]:
    try:
        yield
    except Changed:
        for path in folder.glob("block-*"):
            path.unlink()
        raise


def _read(
    unit: Unit,
    config: PackConfig,
    bad: BadRecords,
    apart: HeldOut,
    writer: UnitWriter,
    progress: UnitProgress,
) -> None:
    """Every document of the unit to where it belongs, in batches."""
    batch: list[Document] = []
    size = 0
    for document in reader_of(unit, config).documents(unit, bad):
        size += len(document.text)
        if not apart.takes(document):
            batch.append(document)
        if size >= BATCH_BYTES:
            progress.advance(size, writer.add(batch))
            batch, size = [], 0
    progress.advance(size, writer.add(batch))
    writer.finish()
    progress.end()
