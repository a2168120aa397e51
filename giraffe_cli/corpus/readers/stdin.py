"""`-`: standard input, kept in a file for as long as it is packed.

    zcat books/*.jsonl.gz | giraffe pack-data - ...

A pipe cannot be read twice, by several processes or from the middle, so it is stored first, and its
units are those of the file: an array of JSON objects or one over several lines, JSON lines when the
first byte behind white space is `{`, compressed JSON lines when it begins as gzip or zstd do, else
one text, one document. Memory: 1 MB.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, make_reader
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import atomic_open

NAME = "-"
CHUNK = 1 << 20
BEGINNINGS = {
    rb"\x1f\x8b": ".jsonl.gz",
    rb"\x28\xb5\x2f\xfd": ".jsonl.zst",
    rb"\[\s*[{\"]|\{[ \t\r]*\n": ".json",
    rb"\{": ".jsonl",
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Stdin(AbstractReader):
    """Standard input."""

    text_field: str = "text"
    """The field that holds the text, of JSON lines."""
    spool: str = ""
    """The folder that standard input is stored in; it must outlive the reading of the units."""

    summary = "a dash: standard input, JSON lines or one text"

    def claims(self, source: str) -> bool:
        return source == NAME

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        if not self.spool:
            raise InvalidInput(
                "standard input (`-`) can only be packed", "store it in a file, and name that"
            )
        if sys.stdin is None or sys.stdin.isatty():
            raise InvalidInput(
                "`-` is standard input, which is a terminal", "pipe a corpus in: zcat F | giraffe …"
            )
        path = _store(sys.stdin.buffer, Path(self.spool))
        readers = {".txt": "text-tree", ".json": "json-values"}
        reader = readers.get(path.suffix, "jsonl")
        return make_reader(reader).units(str(path), name, block_bytes)

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        knobs = {"text_field": self.text_field, "max_doc_bytes": self.max_doc_bytes}
        return make_reader(unit.reader, knobs).documents(unit, bad)

    def example(self, folder: Path) -> str:
        return NAME


def _store(stream: IO[bytes], folder: Path) -> Path:
    """The file that holds all of `stream`, named for what it is.

    Raises:
        InvalidInput: there is nothing on it.
        GiraffeError: the folder cannot be written or is full.
    """
    data = stream.read(CHUNK)
    if not data:
        raise InvalidInput("standard input is empty", "pipe a corpus in: zcat F | giraffe …")
    begin = data.removeprefix(BYTE_ORDER_MARK).lstrip()
    suffixes = [suffix for start, suffix in BEGINNINGS.items() if re.match(start, begin)]
    path = folder / f"stdin{suffixes[0] if suffixes else '.txt'}"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as handle:
        while data:
            handle.write(data)
            data = stream.read(CHUNK)
    return path
