"""JSON lines, plain, gzipped or zstd-compressed: one object a line, one document an object.

    {"id": "moby-dick", "text": "Call me Ishmael. ..."}

The id is the object's `id` (a string or an integer), else `file name:line number`, or
`file name@byte offset` in a plain file of more than 32 MB, whose units do not know their line
numbers. A text that holds a NUL character is a bad record. Memory: one line.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size
from giraffe_cli.corpus.readers._lines import (
    BrokenStream,
    count_lines,
    is_compressed,
    is_values,
    lines,
)
from giraffe_cli.corpus.readers._records import Defect, identity_of, is_blank, text_of, too_long
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of

_ORJSON: Any = importlib.import_module("orjson") if importlib.util.find_spec("orjson") else None
"""Of the extra `[fast]`; None without it."""

SUFFIXES = tuple(
    plain + packed for plain in (".jsonl", ".ndjson", ".json") for packed in ("", ".gz", ".zst")
)


@dataclass(frozen=True)
class Jsonl(AbstractReader):
    """`.jsonl`, `.ndjson` and `.json` files, also `.gz` and `.zst`."""

    text_field: str = "text"
    """The field that holds the text."""

    holds_records = True
    summary = "a .jsonl file (.gz, .zst), one object with a text field a line"

    def claims(self, source: str) -> bool:
        is_named_so = source.lower().endswith(SUFFIXES) and not Path(source).is_dir()
        return is_named_so and not is_values(source)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        size = file_size(source)
        step = size if is_compressed(source) else block_bytes
        starts = range(0, size, step) if size else [0]
        spans = [FileSpan(source, start, min(start + step, size), size) for start in starts]
        return units_of(spans, step, name, "jsonl", str(Path(source).parent))

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        bad.pass_over(unit)
        for span in unit.files:
            yield from self._of_span(unit, span, bad)

    def example(self, folder: Path) -> str:
        path = folder / "example.jsonl"
        records = [{"id": "one", self.text_field: "a text"}, {self.text_field: "another"}]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    def _of_span(self, unit: Unit, span: FileSpan, bad: BadRecords) -> Iterator[Document]:
        place, limit = _Place(span, unit.relative(span.path)), self.max_doc_bytes
        number = 0
        try:
            for number, (offset, line) in enumerate(lines(span, limit), start=1):
                if number == 1:
                    place.first = offset
                if line.isspace():
                    continue
                try:
                    if len(line) > limit and not line.endswith(b"\n"):
                        raise too_long(limit)
                    record = parse(line, self.text_field)
                    text = text_of(record, self.text_field)
                    identity = identity_of(record)
                except Defect as defect:
                    bad.report(partial(place.named, number), defect.reason, defect.detail)
                    continue
                if is_blank(text):
                    bad.skip("empty text")
                else:
                    yield Document(identity or place.identity(number, offset), text, unit.source)
        except BrokenStream as broken:
            # Lines before the break were yielded; the one it falls into is lost.
            bad.report(partial(place.named, number + 1), str(broken))


@dataclass
class _Place:
    """Line numbers of a span that begins anywhere in its file: counted when they are asked for."""

    span: FileSpan
    name: str
    first: int = 0
    """Offset of the span's first line."""

    @cached_property
    def lines_before(self) -> int:
        return count_lines(self.span.path, self.first) if self.first else 0

    def named(self, number: int) -> str:
        """`file:line` of the `number`th line of the span."""
        return f"{self.span.path}:{self.lines_before + number}"

    def identity(self, number: int, offset: int) -> str:
        """The id of a record without one; a function of the file, not of how it is cut."""
        if is_compressed(self.span.path) or self.span.size <= BLOCK_BYTES:
            return f"{self.name}:{self.lines_before + number}"
        return f"{self.name}@{offset}"


def parse(line: bytes, text_field: str = "text") -> dict[str, Any]:
    """The object on one line, the same with orjson as without it.

    What orjson refuses is asked of `json` again, which takes more: a byte order mark, NaN, lone
    surrogates. An id or a text that is a float may be an integer beyond 64 bits, which orjson
    rounds and `json` does not.

    Raises:
        Defect: it is no JSON object.
    """
    if _ORJSON is not None:
        with contextlib.suppress(ValueError):
            record = _ORJSON.loads(line)
            if isinstance(record, dict) and not (
                isinstance(record.get("id"), float) or isinstance(record.get(text_field), float)
            ):
                return record
    return _parse_slowly(line)


def _parse_slowly(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.rstrip(b"\r\n").decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Defect("not valid UTF-8", f" (byte {error.start + 1} of the line)") from error
    except RecursionError as error:
        raise Defect("not valid JSON", " (nested too deeply)") from error
    except json.JSONDecodeError as error:
        nul = ", the line holds NUL bytes" if b"\0" in line else ""
        raise Defect("not valid JSON", f" ({error.msg}, column {error.colno}{nul})") from error
    except ValueError as error:  # an integer of more than 4300 digits
        raise Defect("not valid JSON", f" ({error})") from error
    if not isinstance(record, dict):
        raise Defect(f"not a JSON object but {type(record).__name__}")
    return record
