"""`.json` files that are not JSON lines: an array of objects, or one object over several lines.

    [{"text": "Call me Ishmael. ..."},      {
     {"text": "It was the best ..."}]         "text": "Call me Ishmael. ..."
                                            }

The id is the object's `id`, else `file name[place in the array]`, of a lone object the file name.
Such a file is one unit of any size. Of a compressed one that breaks, the records of the last 1 MB
before the break are lost. Memory: one record, and 1 MB.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size
from giraffe_cli.corpus.readers._lines import BrokenStream, is_values, opened
from giraffe_cli.corpus.readers._records import (
    Defect,
    check_length,
    identity_of,
    is_blank,
    text_of,
    too_long,
)
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of

CHUNK = 1 << 20
CUT = 8
"""An error so near to the end of what was read may be of the cut: the longest literal and escape
that JSON has are `false` and `\\uXXXX`."""
WHITE_SPACE = " \t\r\n"


@dataclass(frozen=True)
class JsonValues(AbstractReader):
    """A `.json` file (`.gz`, `.zst`) with an array of records or one record."""

    text_field: str = "text"
    """The field that holds the text."""

    holds_records = True
    summary = "a .json file with an array of objects, or one object over several lines"

    def claims(self, source: str) -> bool:
        return is_values(source)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        size = file_size(source)
        root = str(Path(source).parent)
        return units_of([FileSpan(source, 0, size, size)], size, name, "json-values", root)

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        bad.pass_over(unit)
        for span in unit.files:
            yield from self._of_file(unit, span.path, bad)

    def example(self, folder: Path) -> str:
        path = folder / "example.json"
        records = [{"id": "one", self.text_field: "a text"}, {self.text_field: "another"}]
        path.write_text(json.dumps(records, indent=2))
        return str(path)

    def _of_file(self, unit: Unit, path: str, bad: BadRecords) -> Iterator[Document]:
        try:
            with opened(path) as stream:
                values = _Values(stream, self.max_doc_bytes)
                for place, value in values:
                    try:
                        text, identity = self._record(value)
                    except Defect as defect:
                        bad.report(f"{path}{place}", defect.reason, defect.detail)
                        continue
                    if is_blank(text):
                        bad.skip("empty text")
                    else:
                        name = unit.relative(path) + place
                        yield Document(identity or name, text, unit.source)
        except BrokenStream as broken:
            bad.report(path, str(broken))
        except Defect as defect:  # where the next record begins, nobody knows
            detail = f"{defect.detail}; nothing behind it is read"
            bad.report(f"{path}:{values.line}", defect.reason, detail)

    def _record(self, value: Any) -> tuple[str, str | None]:
        if not isinstance(value, dict):
            raise Defect(f"not a JSON object but {type(value).__name__}")
        text = text_of(value, self.text_field)
        check_length(text, self.max_doc_bytes)
        return text, identity_of(value)


class _Values:
    """The records of a stream, one after the other, each with its place: `[0]`, `[1]`, ..."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream = stream
        self._text = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self._limit = limit
        self._read, self._at, self._ended = "", 0, False
        self._lines_before = 0
        self._fault: Defect | None = None
        """What is wrong behind what was read, told when that is used up."""

    @property
    def line(self) -> int:
        """The line that is being read, from 1."""
        return self._lines_before + self._read.count("\n", 0, self._at) + 1

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Raises Defect where the text is no JSON any more, or a record is too long."""
        if self._next() != "[":
            yield "", self._value()
        else:
            yield from self._array()
        if rest := self._next():
            raise Defect("not valid JSON", f" ({rest!r} behind the value)")

    def _array(self) -> Iterator[tuple[str, Any]]:
        number, self._at = 0, self._at + 1
        while (begin := self._next()) != "]":
            if number:
                self._pass_comma(begin)
            yield f"[{number}]", self._value()
            number += 1
        self._at += 1

    def _pass_comma(self, found: str) -> None:
        if found != ",":
            told = f"{found!r} where a comma or ] belongs" if found else "the array has no end"
            raise Defect("not valid JSON", f" ({told})")
        self._at += 1
        self._next()

    def _next(self) -> str:
        """The next character that is no white space, which is not passed; empty at the end."""
        while True:
            while self._at < len(self._read) and self._read[self._at] in WHITE_SPACE:
                self._at += 1
            if self._at < len(self._read):
                return self._read[self._at]
            if self._ended:
                return ""
            self._more()

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._read, self._at)
            except RecursionError as error:
                raise Defect("not valid JSON", " (nested too deeply)") from error
            except json.JSONDecodeError as error:
                if self._ended or not self._is_of_the_cut(error):
                    raise Defect("not valid JSON", f" ({error.msg})") from error
            except ValueError as error:  # an integer of more than 4300 digits
                raise Defect("not valid JSON", f" ({error})") from error
            else:
                # a number at the end of what was read may go on: `1` of `1e+5`
                if end + 2 < len(self._read) or self._ended:
                    self._at = end
                    return value
            if len(self._read) - self._at > 2 * self._limit + CHUNK:
                raise too_long(self._limit)
            self._more()

    def _is_of_the_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated") or error.pos >= len(self._read) - CUT

    def _more(self) -> None:
        """Read on, as much again as is waiting, so that a long record is not decoded often."""
        if self._fault:
            self._at = len(self._read)  # its line
            raise self._fault
        self._lines_before += self._read.count("\n", 0, self._at)
        waiting = self._read[self._at :]
        data = self._stream.read(max(CHUNK, len(waiting)))
        try:
            text = self._text.decode(data, final=not data)
        except UnicodeDecodeError as error:
            text = error.object[: error.start].decode()
            self._fault = Defect("not valid UTF-8")
        self._ended = not data and self._fault is None
        self._read, self._at = waiting + text, 0
