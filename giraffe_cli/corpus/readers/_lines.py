"""Lines of a file, plain, gzipped or zstd-compressed, in memory of one line.

A line belongs to the span of bytes in which its first byte lies, so neighbouring spans of a file
share no line and lose none, wherever they are cut.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from giraffe_cli.corpus.base import missing
from giraffe_cli.corpus.unit import FileSpan
from giraffe_cli.errors import InvalidInput

BUFFER = 1 << 20
ZSTD_BUFFER = 1 << 16
"""Arrow fills all of a buffer or, at a break, none of it: so much is lost before one."""
GZIP = 31
"""zlib's `wbits` for a gzip header and the largest window."""
SKIPPED_AT_A_TIME = 1 << 20
JSON_SUFFIXES = (".json", ".json.gz", ".json.zst")
SNIFFED = 1 << 10
"""Bytes that show how a file of JSON begins."""


class BrokenStream(Exception):
    """A compressed file ends early or does not hold what its name says."""


def is_compressed(path: str) -> bool:
    """Whether the name says so; such a file can only be read from its start."""
    return path.lower().endswith((".gz", ".zst"))


def lines(span: FileSpan, limit: int) -> Iterator[tuple[int, bytes]]:
    """`(offset of the first byte, line)` of each line that begins inside the span.

    Offsets of a compressed file count what comes out of it. Of a line of more than `limit` bytes
    only the first `limit + 1` are given.

    Raises:
        BrokenStream: after the last line before the break; of zstd the last 64 KB may be lost.
        InvalidInput: the file is missing or unreadable.
    """
    with opened(span.path) as stream:
        if is_compressed(span.path):
            yield from _lines(stream, 0, sys.maxsize, limit)
        else:
            yield from _lines(stream, span.start, span.end, limit)


@contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, or what comes out of a compressed one.

    Raises:
        BrokenStream: from within, where a compressed file breaks.
        InvalidInput: the file is missing or unreadable.
    """
    try:
        with open(path, "rb", buffering=BUFFER) as raw:
            yield _decompressed(raw, path) if is_compressed(path) else raw
    except (EOFError, zlib.error) as error:
        raise BrokenStream(f"the gzip stream is truncated or corrupt ({error})") from error
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        if error.errno is None and path.lower().endswith(".zst"):  # Arrow's own
            raise BrokenStream(f"the zst stream is truncated or corrupt ({error})") from error
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error


def is_values(path: str) -> bool:
    """Whether a `.json` file (`.gz`, `.zst`) begins as an array, or as an object of which nothing
    else is on the first line, and so is not JSON lines."""
    first, *rest = _beginning(path).split(b"\n", 1)
    return first.startswith(b"[") or (first.strip() == b"{" and bool(rest))


def begins_with_records(path: str, text_field: str) -> bool:
    """Whether a `.json` file (`.gz`, `.zst`) begins as an array of objects, the first of which has
    the field of that name early on."""
    begin = _beginning(path)
    return bool(re.match(rb"\[\s*\{", begin)) and json.dumps(text_field).encode() in begin


def _beginning(path: str) -> bytes:
    """The first bytes behind white space; none of a file of another kind or that cannot be read."""
    if not path.lower().endswith(JSON_SUFFIXES) or not Path(path).is_file():
        return b""
    try:
        with opened(path) as stream:
            return stream.read(SNIFFED).removeprefix(codecs.BOM_UTF8).lstrip()
    except (BrokenStream, InvalidInput):  # told when it is read
        return b""


def count_lines(path: str, end: int) -> int:
    """Line breaks in the first `end` bytes; for the line number in an error."""
    count = 0
    with open(path, "rb", buffering=0) as handle:
        while end > 0 and (data := handle.read(min(end, BUFFER))):
            count += data.count(b"\n")
            end -= len(data)
    return count


def _lines(handle: IO[bytes], start: int, end: int, limit: int) -> Iterator[tuple[int, bytes]]:
    offset = start
    if start:
        handle.seek(start - 1)  # a line break there, and a line begins at `start`
        offset = start - 1 + _pass_line(handle)
    while offset < end and (line := handle.readline(limit + 1)):
        yield offset, line
        offset += len(line)
        if len(line) > limit and not line.endswith(b"\n"):
            offset += _pass_line(handle)


def _pass_line(handle: IO[bytes]) -> int:
    """Bytes up to and with the next line break, which are passed over."""
    passed = 0
    while piece := handle.readline(SKIPPED_AT_A_TIME):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed


def _decompressed(raw: IO[bytes], path: str) -> IO[bytes]:
    if Path(path).suffix.lower() == ".gz":
        return io.BufferedReader(_Gunzip(raw), BUFFER)
    import pyarrow  # here: reading JSON and text alone needs none of it

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
    return io.BufferedReader(cast(Any, stream), ZSTD_BUFFER)


class _Gunzip(io.RawIOBase):
    """A gzip file's content, member after member.

    The standard library's reader feeds zlib 8 KB at a time and costs half as much again (CPython
    3.11: 0.245 against 0.162 s for 57 MB of text); it also loses, at a break, the lines that lie
    in its caller's buffer.
    """

    def __init__(self, compressed: IO[bytes]) -> None:
        self._compressed = compressed
        self._engine = zlib.decompressobj(GZIP)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of `buffer`; 0 at the end.

        Raises:
            EOFError: the file ends inside a member.
            zlib.error: it holds something else than gzip members.
        """
        while True:
            # at a member's end zlib leaves what follows it in both of these
            left = b"" if self._engine.eof else self._engine.unconsumed_tail
            data = left or self._next()
            if data is None:
                return 0
            out = self._engine.decompress(data, len(buffer))
            if out:
                buffer[: len(out)] = out
                return len(out)

    def _next(self) -> bytes | None:
        """More compressed bytes, of the next member where one ends; None at the end."""
        if not self._engine.eof:
            if data := self._compressed.read(BUFFER):
                return data
            raise EOFError("it ends in the middle")
        data = self._engine.unused_data or self._compressed.read(BUFFER)
        while data and not (data := data.lstrip(b"\0")):  # members may be padded with zeros
            data = self._compressed.read(BUFFER)
        if not data:
            return None
        self._engine = zlib.decompressobj(GZIP)
        return data
