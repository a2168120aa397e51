"""`held_out.jsonl.gz`: what the units set apart, or a document of the lowest hash if none did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.corpus_index import CorpusIndex
from giraffe_cli.corpus.store import held_out_writer
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import CANDIDATE, HELD, unit_folder


def held_documents(units: list[Unit], index: CorpusIndex, work: Path) -> Iterator[tuple[str, str]]:
    """(id, source) of every document held out; ids only are kept in memory."""
    for number, unit in enumerate(units):
        if index.units[number]["held"]:
            with open(unit_folder(work, number) / HELD, "rb") as lines:
                for line in lines:
                    yield json.loads(line)["id"], unit.source


def held_candidates(index: CorpusIndex, config: PackConfig, held: int) -> list[int]:
    """What to hold out when nothing was: every document of the id of the lowest hash, as long as
    others are left to train on."""
    if config.hold_out == 0 or held:
        return []
    ranked = [
        (unit["candidate"]["rank"], unit["candidate"]["id"])
        for unit in index.units
        if unit["candidate"]
    ]
    identity = min(ranked)[1]
    found = [n for n in range(len(index.ids)) if index.ids[n] == identity]
    texts = {index.hashes[number].tobytes() for number in found}
    left = any(hashed.tobytes() not in texts for hashed in index.hashes)
    return found if left else []


def write_held_out(
    index: CorpusIndex,
    work: Path,
    out: Path,
    shared: set[str],
    candidates: list[int],
) -> None:
    """`held_out.jsonl.gz`: the units' held documents, or the candidates."""
    with held_out_writer(out) as write:
        for path in _files(index, work, {index.ids[number] for number in candidates}):
            with open(path, "rb") as lines:
                for line in lines:
                    write(_under_source(line, shared))


def _files(index: CorpusIndex, work: Path, chosen: set[str]) -> Iterator[Path]:
    """Where what is held out lies: what all units set apart, then the candidates of a chosen id."""
    folders = [unit_folder(work, number) for number in range(len(index.units))]
    yield from (folder / HELD for folder in folders)
    for folder, unit in zip(folders, index.units, strict=True):
        if unit["candidate"] and unit["candidate"]["id"] in chosen:
            yield folder / CANDIDATE


def _under_source(line: bytes, shared: set[str]) -> bytes:
    if not shared:
        return line
    value = json.loads(line)
    if value["id"] not in shared:
        return line
    value["id"] = f"{value['source']}:{value['id']}"
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
