"""What a corpus source is: something that yields documents in a stable order.

A reader claims a source (`books.jsonl.gz`, `docs/`, `python-stdlib`) and yields `Document`s. What
is wrong with one record goes to `BadRecords`, which raises or counts as the user chose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from giraffe_cli.errors import InvalidInput
from giraffe_cli.registry import discover


@dataclass(frozen=True)
class Document:
    """One text. `id` is unique within its source, `source` is what the user named."""

    id: str
    text: str
    source: str


@dataclass
class BadRecords:
    """What happens to a record that cannot be used: `fail` raises, `skip` counts it by reason."""

    on_bad: Literal["fail", "skip"] = "fail"
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason → number of records skipped."""

    def report(self, where: str, reason: str) -> None:
        """`where` names file and line.

        Raises:
            InvalidInput: under `fail`.
        """
        if self.on_bad == "fail":
            raise InvalidInput(f"{where}: {reason}", "mend the record, or pass --on-bad skip")
        self.skip(reason)

    def skip(self, reason: str) -> None:
        """Count a record passed over even under `fail`: no fault, only nothing to train on."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1


@dataclass(frozen=True)
class AbstractReader(ABC):
    """One kind of source. Readers hold no state; the file name is the reader's name.

    A reader's dataclass fields are its knobs, such as `text_field`.
    """

    summary: ClassVar[str]
    """What it reads, for the help and the error that lists readers."""

    @abstractmethod
    def claims(self, source: str) -> bool:
        """Whether this reader reads `source`; at most one reader claims a source."""

    @abstractmethod
    def documents(self, source: str, bad: BadRecords) -> Iterator[Document]:
        """Documents in an order that is the same on every machine.

        Raises:
            InvalidInput: the source is missing or unreadable, or a bad record under `fail`.
        """

    @abstractmethod
    def example(self, folder: Path) -> str:
        """Write a small source under `folder` and return its name; the contract suite reads it."""


def readers() -> dict[str, type[AbstractReader]]:
    """Every registered reader by name."""
    return discover("giraffe_cli.corpus.readers", AbstractReader)


def reader_for(source: str, knobs: Mapping[str, Any] | None = None) -> AbstractReader:
    """The reader that claims `source`, with those of `knobs` that it declares.

    Raises:
        InvalidInput: none does; the hint lists what can be read.
    """
    known = readers()
    for kind in known.values():
        if kind().claims(source):
            declared = {entry.name for entry in fields(kind)}
            return kind(**{name: v for name, v in (knobs or {}).items() if name in declared})
    listed = "; ".join(f"{name}: {kind.summary}" for name, kind in known.items())
    fact = f"no reader for `{source}`" if Path(source).exists() else f"`{source}` does not exist"
    raise InvalidInput(fact, f"readable sources: {listed}")
