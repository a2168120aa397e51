"""What readers of books share: a file is a document, `SUFFIX:FOLDER` is all of them below a folder.

    a.epub → `a.epub`        epub:shelf → `a.epub`, `new/b.epub`, ... in the order of their paths

The id is the path relative to the named folder. Hidden files and links are treated as in a tree of
texts; files of other suffixes are not meant, as by a glob.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size, missing
from giraffe_cli.corpus.readers._files import files_below, listed, read_file
from giraffe_cli.corpus.readers._records import Defect, check_length, checked, is_blank
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of
from giraffe_cli.errors import InvalidInput


@dataclass(frozen=True)
class AbstractBooks(AbstractReader):
    """Files of one suffix, a document each."""

    makes_texts = True
    kind: ClassVar[str]
    """Name of the reader, prefix of a folder, and the suffix without its dot: `epub`."""

    @abstractmethod
    def text(self, path: Path) -> str:
        """The text of one file.

        Raises:
            Defect: there is none, or more than `max_doc_bytes`.
        """

    def claims(self, source: str) -> bool:
        if source.startswith(f"{self.kind}:"):
            return True
        return self._is_book(Path(source)) and not Path(source).is_dir()

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        if not source.startswith(f"{self.kind}:"):
            size = file_size(source)
            span = FileSpan(source, 0, size, size)
            return units_of([span], block_bytes, name, self.kind, str(Path(source).parent))
        root = Path(source.removeprefix(f"{self.kind}:"))
        if not root.is_dir():
            if root.exists():
                raise InvalidInput(f"`{root}` is no folder", f"name a file without `{self.kind}:`")
            raise missing(root)
        spans, others = files_below(root, self._is_book)
        if not spans:
            raise InvalidInput(
                f"{root} holds no .{self.kind} file"
                + (f"; it holds: {listed(others)}" if others else ""),
                "name the folder alone to read its texts",
            )
        block_bytes = min(block_bytes, self.group_bytes)
        units = units_of(spans, block_bytes, name, self.kind, str(root))
        return [replace(unit, walked=True) for unit in units]

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        for span in unit.files:
            fence = Path(unit.root) if unit.walked else None
            text = read_file(Path(span.path), fence, bad, self._whole_text)
            if text is not None:
                yield Document(unit.relative(span.path), text, unit.source)

    def _is_book(self, path: Path) -> bool:
        return path.suffix.lower() == f".{self.kind}"

    def _whole_text(self, path: Path) -> str:
        text = self.text(path)
        if is_blank(text):
            raise Defect("no text")
        check_length(text, self.max_doc_bytes)
        return checked(text, "the text")
