"""EPUB: a book is a document, its chapters in the order in which they are read.

    books.epub           epub:shelf (all `.epub` files below the folder)

What the spine lists is read, but for what it marks as out of the line of reading, the table of
contents and pictures; a blank line stands between chapters. `_xhtml.py` says what becomes of
markup. A book under DRM, without a chapter that it lists, or of more than `max_doc_bytes` with its
markup is a bad record. Memory: one book.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from giraffe_cli.corpus.readers._books import AbstractBooks
from giraffe_cli.corpus.readers._epub_files import chapters, missing_chapter, opened
from giraffe_cli.corpus.readers._xhtml import text_of_page

RULES = 1
"""Counts changes of what text is made of a book."""


@dataclass(frozen=True)
class Epub(AbstractBooks):
    """`.epub` files."""

    kind = "epub"
    summary = "an .epub file, or epub:FOLDER for all below it, a book a document"

    def depends_on(self) -> str:
        return f"rules {RULES}"

    def text(self, path: Path) -> str:
        limit, parts, size = self.max_doc_bytes, list[str](), 0
        with opened(path, limit) as archive:
            for name in chapters(archive):
                page = archive.read(name)
                if page is None:
                    raise missing_chapter(name)
                parts.append(text_of_page(page, limit - size, limit))
                size += len(parts[-1])
        return "\n\n".join(filter(None, parts))

    def example(self, folder: Path) -> str:
        root = folder / "example"
        (root / "inner").mkdir(parents=True)
        for name in ("one.epub", "inner/two.epub"):
            with zipfile.ZipFile(root / name, "w") as book:
                for inner, text in {**_EXAMPLE, "a.xhtml": f"<p>The text of {name}</p>"}.items():
                    book.writestr(inner, text)
        return f"{self.kind}:{root}"


_EXAMPLE = {
    "META-INF/container.xml": '<container><rootfiles><rootfile full-path="a.opf"/></rootfiles>'
    "</container>",
    "a.opf": '<package><manifest><item id="a" href="a.xhtml" media-type="application/xhtml+xml"/>'
    '</manifest><spine><itemref idref="a"/></spine></package>',
}
