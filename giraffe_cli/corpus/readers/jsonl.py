"""JSON lines, plain or gzipped: one object a line, one document an object.

    {"id": "moby-dick", "text": "Call me Ishmael. ..."}

The id is the object's `id` (a string or an integer), else `file name:line number`. Memory: one
line and all ids.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document
from giraffe_cli.errors import InvalidInput, near_misses


class _Defect(Exception):
    """Why one record cannot be used."""


@dataclass(frozen=True)
class Jsonl(AbstractReader):
    """`.jsonl` and `.jsonl.gz` files."""

    text_field: str = "text"
    """The field that holds the text."""

    summary = "a .jsonl or .jsonl.gz file, one object with a text field a line"

    def claims(self, source: str) -> bool:
        return source.lower().endswith((".jsonl", ".jsonl.gz")) and not Path(source).is_dir()

    def documents(self, source: str, bad: BadRecords) -> Iterator[Document]:
        first_line: dict[str, int] = {}
        for number, line in _numbered_lines(Path(source), bad):
            if not line.strip():
                continue
            where = f"{source}:{number}"
            try:
                record = _parse(line)
                text = self._text(record)
                identity = _identity(record, f"{Path(source).name}:{number}")
                if identity in first_line:
                    raise _Defect(f"the id `{identity}` is that of line {first_line[identity]} too")
            except _Defect as defect:
                bad.report(where, str(defect))
                continue
            first_line[identity] = number
            if text.strip():
                yield Document(identity, text, source)
            else:
                bad.skip("empty text")

    def example(self, folder: Path) -> str:
        path = folder / "example.jsonl"
        records = [{"id": "one", self.text_field: "a text"}, {self.text_field: "another"}]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    def _text(self, record: dict[str, Any]) -> str:
        if self.text_field not in record:
            known = near_misses(self.text_field, record) if record else "the object is empty"
            raise _Defect(f"no field `{self.text_field}` (--text-field names it); {known}")
        text = record[self.text_field]
        if not isinstance(text, str):
            raise _Defect(f"field `{self.text_field}` is no string but {type(text).__name__}")
        if not _encodable(text):
            raise _Defect(f"field `{self.text_field}` holds half a surrogate pair")
        return text


def _numbered_lines(path: Path, bad: BadRecords) -> Iterator[tuple[int, bytes]]:
    """`(1, first line)`, ...; stops at the place where a gzip stream breaks off.

    Raises:
        InvalidInput: the file is missing or unreadable.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as handle:
            for number, line in enumerate(handle, start=1):
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # Lines before the break were yielded; the one it falls into is lost.
        bad.report(f"{path}:{number + 1}", f"the gzip stream is truncated or corrupt ({error})")
    except FileNotFoundError as error:
        raise InvalidInput(f"`{path}` does not exist", "check the path") from error
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _Defect("not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise _Defect("not valid JSON") from error
    if not isinstance(record, dict):
        raise _Defect(f"not a JSON object but {type(record).__name__}")
    return record


def _identity(record: dict[str, Any], default: str) -> str:
    identity = record.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        return default
    if not _encodable(str(identity)):
        raise _Defect("field `id` holds half a surrogate pair")
    return str(identity)


def _encodable(text: str) -> bool:
    """JSON can escape lone surrogates, which no tokenizer and no UTF-8 file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
