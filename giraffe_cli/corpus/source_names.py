"""What sources are called: `NAME=PATH` taken apart, and names that would read a corpus twice."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from giraffe_cli.errors import UsageError

PREFIX = re.compile(r"([a-z]+):(.*)", re.DOTALL)
NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)


class Source(NamedTuple):
    """`NAME=PATH` taken apart."""

    name: str
    """What documents and statistics call it."""
    path: str
    """What is read."""


def parse_source(named: str) -> Source:
    """`books=data/*.jsonl` → (`books`, `data/*.jsonl`); a path alone is its own name.

    What exists as it stands, such as `lang=en/a.jsonl`, or matches as a glob (`lang=*/*.jsonl`), is
    not taken apart. In a name, bytes that are no UTF-8 are written `\\xff`.
    """
    match = NAME.fullmatch(named)
    if match and not _lies_here(named):
        return Source(match[1], match[2])
    return Source(os.fsencode(named).decode("utf-8", "backslashreplace"), named)


def _lies_here(named: str) -> bool:
    first = Path(named).parts[0]
    is_folder = not glob.has_magic(first) and Path(first).is_dir()
    return is_folder or Path(named).exists() or _matches(named)


def _matches(pattern: str) -> bool:
    try:
        return glob.has_magic(pattern) and any(Path().glob(pattern))
    except ValueError:  # `**` as a part of a name
        return False


def is_local(named: str) -> bool:
    """Whether a source lies here and can be looked at: neither standard input nor the Hub."""
    path = parse_source(named).path
    return path != "-" and not path.startswith("hf:")


def check_distinct(sources: Collection[str]) -> None:
    """Refuse a corpus that would be read twice, as far as names tell.

    Raises:
        UsageError: two sources have one name or one path, or one lies inside the other.
    """
    parsed = [parse_source(named) for named in sources]
    for name, count in Counter(source.name for source in parsed).items():
        if count > 1:
            raise UsageError(
                f"`{name}` is named twice", "name each source once; globs take several"
            )
    places = [_place(source.path) for source in parsed]
    for index, (source, (kind, place)) in enumerate(zip(parsed, places, strict=True)):
        for other, (another, elsewhere) in zip(parsed[:index], places[:index], strict=True):
            if kind != another:
                continue
            if place == elsewhere:
                raise UsageError(f"`{source.path}` is named twice", "name each source once")
            if place in elsewhere.parents or elsewhere in place.parents:
                raise UsageError(f"`{source.name}` and `{other.name}` overlap", "name one of them")


def _place(path: str) -> tuple[str, Path]:
    """Where a source lies, and of which kind it is: `epub:books` and `books` are other files of one
    folder, a repository and a tree are the same ones."""
    match = PREFIX.fullmatch(path)
    if not match or Path(path).exists():
        return "", Path(path).resolve()
    return match[1] if match[1] != "repo" else "", Path(match[2]).resolve()
