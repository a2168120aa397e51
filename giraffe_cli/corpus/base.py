"""What a corpus source is: fixed units of work, each of which yields documents in a stable order.

A reader claims a source (`books.jsonl.gz`, `docs/`, `python-stdlib`) and cuts it into `Unit`s from
listings and sizes alone, so that every process and machine cuts it the same way. Reading a unit
needs no other unit. What is wrong with one record goes to `BadRecords`, which raises or counts as
the user chose.

    reader.units("books.jsonl", "books", 32 << 20) → two units of a file of 40 MB
    reader.documents(unit, BadRecords()) → Document("moby-dick", "Call me Ishmael. ...", "books")
"""

from __future__ import annotations

import difflib
import functools
import os
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from giraffe_cli.corpus.duplicates import text_hash
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit
from giraffe_cli.errors import InvalidInput
from giraffe_cli.registry import discover

MAX_DOC_BYTES = 256_000_000
"""Default of the longest document that is taken."""
MOST_NAMED = 100
"""Bad records of a corpus that are named; the rest are counted."""


@dataclass(frozen=True)
class Document:
    """One text. `source` is the user's name for where it is from."""

    id: str
    """Stable from run to run; nothing forbids two documents with one id."""
    text: str
    source: str


def longest_first(documents: Iterable[Document], most: int | None = None) -> list[Document]:
    """One document of each text, by its bytes in UTF-8: a token of most tokenizers has three to
    four of them in English and two to three in Chinese, where it has four characters or one.
    Texts are one that differ in white space alone (`text_hash`).

    Of `most`, no more than twice as many are in memory at a time."""
    firsts: dict[bytes, Document] = {}
    for document in documents:
        text = text_hash(document.text)
        firsts[text] = min(firsts.get(text, document), document, key=_by_bytes)
        if most is not None and len(firsts) > 2 * most:
            longest = sorted(firsts.items(), key=lambda entry: _by_bytes(entry[1]))
            firsts = dict(longest[:most])
    return sorted(firsts.values(), key=_by_bytes)[:most]


def _by_bytes(document: Document) -> tuple[int, str, str, str]:
    size = len(document.text.encode("utf-8", "surrogatepass"))
    return -size, document.source, document.id, document.text


@dataclass
class BadRecords:
    """What happens to a record that cannot be used: `fail` raises, `skip` counts it by reason."""

    on_bad: Literal["fail", "skip"] = "fail"
    hint: str = "mend the record, or pass --on-bad skip"
    """What helps under `fail`."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason → number of records skipped."""
    named: list[str] = field(default_factory=list)
    """`file:line: reason` of the first `MOST_NAMED` bad ones among them."""

    def report(self, where: str | Callable[[], str], reason: str, detail: str = "") -> None:
        """`where` names file and line, called only if it is told; so is `detail`.

        Raises:
            InvalidInput: under `fail`.
        """
        if self.on_bad == "fail" or len(self.named) < MOST_NAMED:
            told = f"{where if isinstance(where, str) else where()}: {reason}{detail}"
            if self.on_bad == "fail":
                raise InvalidInput(told, self.hint)
            self.named.append(told)
        self.skip(reason)

    def skip(self, reason: str, count: int = 1) -> None:
        """Count records passed over even under `fail`: no fault, only nothing to train on."""
        self.skipped[reason] = self.skipped.get(reason, 0) + count

    def pass_over(self, unit: Unit) -> None:
        """Count what the listing left out of `unit`: the first thing `documents` does."""
        for reason, count in unit.passed_over:
            self.skip(reason, count)


@dataclass(frozen=True)
class AbstractReader(ABC):
    """One kind of source. Readers hold no state; the file name is the reader's name.

    A reader's dataclass fields are its knobs, such as `text_field`.
    """

    max_doc_bytes: int = MAX_DOC_BYTES
    """A longer document (its UTF-8, or the record that holds it) is a bad record."""

    summary: ClassVar[str]
    """What it reads, for the help and the error that lists readers."""

    group_bytes: ClassVar[int] = sys.maxsize
    """Small files are put into one unit up to so many bytes, less than `block_bytes` where reading
    them is slow, so that several processes have something to do."""

    makes_texts: ClassVar[bool] = False
    """Whether a file that it claims is one document, whose text is not the file's own bytes."""

    holds_records: ClassVar[bool] = False
    """Whether it reads single files of records, which a folder may be full of."""

    @abstractmethod
    def claims(self, source: str) -> bool:
        """Whether this reader reads `source`; at most one reader claims a source."""

    @abstractmethod
    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        """`source`, which the user calls `name`, cut into units of about `block_bytes`.

        Always the same for the same files. What cannot be cut is one unit, however large.

        Raises:
            InvalidInput: the source is missing, unreadable, or holds nothing of this kind.
        """

    @abstractmethod
    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        """The documents of one of `units`, in an order that is the same on every machine.

        Raises:
            InvalidInput: a file of the unit cannot be read, or a bad record under `fail`.
        """

    def depends_on(self) -> str:
        """What documents are made by beside the bytes of their unit, such as a library and its
        version: part of what identifies a packed corpus. Empty where nothing is."""
        return ""

    @abstractmethod
    def example(self, folder: Path) -> str:
        """Write a small source under `folder` and return its name; the contract suite reads it."""


@functools.cache  # a corpus may be a million files
def readers() -> dict[str, type[AbstractReader]]:
    """Every registered reader by name."""
    return discover("giraffe_cli.corpus.readers", AbstractReader)


def make_reader(name: str, knobs: Mapping[str, Any] | None = None) -> AbstractReader:
    """The reader registered as `name`, with those of `knobs` that it declares."""
    kind = readers()[name]
    declared = {entry.name for entry in fields(kind)}
    return kind(**{key: value for key, value in (knobs or {}).items() if key in declared})


def reader_for(source: str, knobs: Mapping[str, Any] | None = None) -> AbstractReader:
    """The reader that claims `source`, with those of `knobs` that it declares.

    Raises:
        InvalidInput: none does; the hint lists what can be read.
    """
    known = readers()
    for name, kind in known.items():
        if kind().claims(source):
            return make_reader(name, knobs)
    if not Path(source).exists() and ":" not in source and os.sep in source:
        raise missing(source)
    fact = f"no reader for `{source}`" if Path(source).exists() else f"`{source}` does not exist"
    raise InvalidInput(fact, _readable())


def text_of_file(path: Path) -> str | None:
    """The text of a file of a kind that a reader makes text of, such as EPUB; None of any other.

    Raises:
        InvalidInput: it holds none that can be read, or what reads it is not installed.
    """
    kinds = (kind() for kind in readers().values() if kind.makes_texts)
    reader = next((kind for kind in kinds if kind.claims(str(path))), None)
    if reader is None:
        return None
    (unit,) = reader.units(str(path), str(path))
    bad = BadRecords(hint="name a text, or a book that has one")
    (document,) = reader.documents(unit, bad)
    return document.text


def _readable() -> str:
    listed = "; ".join(f"{name}: {kind.summary}" for name, kind in readers().items())
    return f"readable sources: {listed}"


def file_size(path: str | Path) -> int:
    """Bytes of a file.

    Raises:
        InvalidInput: it is missing, no regular file, or cannot be looked at.
    """
    try:
        facts = Path(path).stat()
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from error
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidInput(f"{path} is no regular file", "pipe it in: giraffe pack-data - < PIPE")
    return facts.st_size


def missing(path: str | Path) -> InvalidInput:
    """The error for a path that leads nowhere; the hint: names beside it that look alike, else
    what can be read."""
    folder = Path(path).parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    close = difflib.get_close_matches(Path(path).name, names, n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(f'`{folder / name}`' for name in close)}?"
    other = f"check the path; {_readable()}"
    return InvalidInput(f"`{path}` does not exist", question if close else other)
