"""A text, Markdown or source file, or a folder of them: one document a file.

    docs/ → `docs/guide.md`, `docs/api/index.md`, ... in the order of their paths

The id is the path relative to the named folder, with forward slashes. Hidden files and folders are
left out, binary files and other suffixes are counted as skipped, links may not leave the folder.
Of a web page it is what the page shows, of a notebook its cells (`_pages.py`). Memory: one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size, readers
from giraffe_cli.corpus.readers._books import AbstractBooks
from giraffe_cli.corpus.readers._files import is_text_name, listed, text_files
from giraffe_cli.corpus.readers._pages import read_shown
from giraffe_cli.corpus.readers.arrow import is_saved_dataset
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of
from giraffe_cli.errors import InvalidInput

NAME = "text-tree"


@dataclass(frozen=True)
class TextTree(AbstractReader):
    """Text, Markdown and code."""

    summary = "a text, Markdown or source file, or a folder of them"

    def claims(self, source: str) -> bool:
        path = Path(source)
        if path.is_dir():
            return not is_saved_dataset(path)
        return path.is_file() and is_text_name(path)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        root = Path(source)
        if not root.is_dir():
            size = file_size(root)
            span = FileSpan(source, 0, size, size)
            return units_of([span], block_bytes, name, NAME, str(root.parent))
        spans, others = text_files(root)
        if not spans:
            raise InvalidInput(
                f"{source} holds no text file"
                + (f"; it holds: {listed(others)}" if others else ""),
                _readable(source, others),
            )
        passed_over = tuple((f"not a text suffix: {s}", n) for s, n in sorted(others.items()))
        first, *rest = units_of(spans, block_bytes, name, NAME, source)
        walked = [replace(first, passed_over=passed_over), *rest]
        return [replace(unit, walked=True) for unit in walked]

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        bad.pass_over(unit)
        for span in unit.files:
            fence = Path(unit.root) if unit.walked else None
            text = read_shown(Path(span.path), fence, self.max_doc_bytes, bad)
            if text is not None:
                yield Document(unit.relative(span.path), text, unit.source)

    def example(self, folder: Path) -> str:
        root = folder / "example"
        (root / "inner").mkdir(parents=True)
        (root / "one.md").write_text("# a text")
        (root / "inner" / "two.py").write_text("print('another')")
        return str(root)


def _readable(source: str, others: Counter[str]) -> str:
    """What there is to read instead: books by the readers that read all below a folder."""
    kinds = [kind.kind for kind in readers().values() if issubclass(kind, AbstractBooks)]
    named = [f"{kind}:{source}" for kind in kinds if others[f".{kind}"]]
    books = f"to read the books in it, name {' and '.join(named)}; " if named else ""
    return f"{books}readable here: .txt, .md, .py and other text"
