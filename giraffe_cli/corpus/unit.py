"""A unit of work: a piece of a source that is read on its own, by any process in any order.

units_of(spans, 32 << 20, "docs", "text_tree", "docs/") → small files together
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BLOCK_BYTES = 32 << 20
"""Default size that units are cut and grouped to."""


@dataclass(frozen=True)
class FileSpan:
    """Bytes `start` to `end` of a file that was `size` bytes long when it was listed."""

    path: str
    """As the source was named: relative to the working directory, or absolute."""
    start: int
    end: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether it is all of the file."""
        return (self.start, self.end) == (0, self.size)


@dataclass(frozen=True)
class Unit:
    """A piece of a source that is read on its own, by any process in any order."""

    source: str
    """The user's name of the source."""
    reader: str
    """Registered name of the reader that cut it."""
    name: str
    """Unique and stable within its source: `a.jsonl`, `a.jsonl:0-33554432`, `a.txt..z.txt`."""
    root: str
    """The folder that document ids are relative to, or the word that names the source."""
    files: tuple[FileSpan, ...]
    """Empty for a source that is no file of this machine."""
    size: int
    """Bytes to read, for progress; 0 when nobody knows."""
    passed_over: tuple[tuple[str, int], ...] = ()
    """Reason → number of files that the listing left out; `documents` counts them as skipped."""
    walked: bool = False
    """True when the files were found by walking `root`: then no link may lead out of it."""

    def relative(self, path: str) -> str:
        """`path` below `root`, with forward slashes: what document ids are made of."""
        return below(path, self.root)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Unit:
        """The unit that `to_json` wrote."""
        spans = tuple(FileSpan(**span) for span in value["files"])
        passed_over = tuple((reason, count) for reason, count in value["passed_over"])
        return cls(**{**value, "files": spans, "passed_over": passed_over})


def units_of(
    spans: Iterable[FileSpan], block_bytes: int, source: str, reader: str, root: str
) -> list[Unit]:
    """Neighbours together in units of up to `block_bytes`; a longer span is a unit of its own."""
    units: list[Unit] = []
    group: list[FileSpan] = []
    size = 0
    for span in [*spans, None]:
        length = span.end - span.start if span else 0
        if group and (span is None or size + length > block_bytes):
            units.append(Unit(source, reader, _unit_name(group, root), root, tuple(group), size))
            group, size = [], 0
        if span:
            group.append(span)
            size += length
    return units


def _unit_name(spans: list[FileSpan], root: str) -> str:
    first, last = spans[0], spans[-1]
    if first is not last:
        return f"{below(first.path, root)}..{below(last.path, root)}"
    part = "" if first.whole else f":{first.start}-{first.end}"
    return below(first.path, root) + part


def below(path: str, root: str) -> str:
    """`path` relative to the folder `root`, with forward slashes; bytes that are no UTF-8 are
    written `\\xff`."""
    relative = Path(os.path.relpath(path, root)).as_posix()
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
