"""Whether the files of a corpus are what they were: digests of units, and changes while reading.

with unchanged(units):
    ... read them ...      # GiraffeError if a file was written to meanwhile
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from giraffe_cli.corpus.base import make_reader
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit
from giraffe_cli.errors import GiraffeError

CHUNK = 1 << 20
PARQUET = b"PAR1"


class Stamp(NamedTuple):
    """What tells a file from a later version of it without reading it."""

    size: int
    mtime_ns: int
    inode: int


def raw_digest(unit: Unit) -> str:
    """sha256 over all bytes that reading `unit` can depend on, and the names that ids are made of.

    Where the unit is part of a file, the line that runs over its end belongs to it, and parquet's
    directory. A part of a file of at most 32 MB has the digest of all of it: its ids may be line
    numbers. A dataset of the hub counts by its name, which holds the commit. What else the reader
    depends on, such as the version of a library, counts too.
    """
    hasher = hashlib.sha256(f"{unit.reader} {unit.name}".encode())
    hasher.update(make_reader(unit.reader).depends_on().encode())
    for span in unit.files:
        if "://" in span.path:
            hasher.update(os.fsencode(span.path))
            continue
        name = os.fsencode(unit.relative(span.path))
        hasher.update(b"%d %d %d %d " % (len(name), span.start, span.end, span.size) + name)
        try:
            with _opened(span.path) as handle:
                for data in _chunks(handle, span):
                    hasher.update(data)
        except OSError:
            hasher.update(b"unreadable")  # a link to nothing, no permission: the reader tells
    return hasher.hexdigest()


def stamps(units: Iterable[Unit]) -> dict[str, Stamp]:
    """Path → what the file looks like now.

    Raises:
        GiraffeError: a file is gone, or not as long as when it was listed.
    """
    found: dict[str, Stamp] = {}
    for unit in units:
        for span in unit.files:
            if "://" in span.path or span.path in found:
                continue
            stamp = found[span.path] = _stamp(span.path)
            if stamp.size != span.size and not Path(span.path).is_symlink():
                raise changed(span.path)
    return found


def check_unchanged(before: dict[str, Stamp]) -> None:
    """Compare with now what `stamps` returned.

    Raises:
        GiraffeError: a file changed or is gone.
    """
    for path, stamp in before.items():
        if _stamp(path) != stamp:
            raise changed(path)


@contextlib.contextmanager
def unchanged(units: Iterable[Unit]) -> Iterator[None]:
    """Hold the files of `units` to what they are now until the block ends.

    A change is told in the place of an error that it may have caused.

    Raises:
        GiraffeError: a file changed since it was listed, or in between.
    """
    before = stamps(units)
    try:
        yield
    except GiraffeError:
        check_unchanged(before)
        raise
    check_unchanged(before)


class Changed(GiraffeError):
    """A file is no longer what was listed: what was read of it is of no use."""


def changed(path: str) -> Changed:
    """The error for such a file."""
    return Changed(f"{path} changed while it was read", "run the command again")


def _stamp(path: str) -> Stamp:
    try:
        facts = Path(path).stat()
    except OSError as error:
        if Path(path).is_symlink():
            return Stamp(0, 0, 0)
        raise changed(path) from error
    return Stamp(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def _opened(path: str) -> IO[bytes]:
    return open(path, "rb", buffering=0)


def _chunks(handle: IO[bytes], span: FileSpan) -> Iterator[bytes]:
    numbered = span.size <= BLOCK_BYTES
    end = span.size if numbered else span.end
    position = handle.seek(0 if numbered else max(0, span.start - 1))
    while position < end and (data := handle.read(min(CHUNK, end - position))):
        position += len(data)
        yield data
    while position < span.size and (data := handle.read(CHUNK)):
        line, line_break, _ = data.partition(b"\n")
        yield line + line_break
        if line_break:
            break
    if not span.whole:
        yield _directory(handle, span.size)


def _directory(handle: IO[bytes], size: int) -> bytes:
    """The directory at the end of a parquet file, where row groups have their numbers of rows."""
    handle.seek(max(0, size - 8))
    end = handle.read(8)
    if end[4:] != PARQUET:
        return b""
    handle.seek(max(0, size - 8 - int.from_bytes(end[:4], "little")))
    return handle.read()
