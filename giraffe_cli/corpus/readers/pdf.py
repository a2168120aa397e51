"""PDF: a file with a text layer is a document, read by pypdf (extra `[pdf]`); no OCR.

    paper.pdf            pdf:papers (all `.pdf` files below the folder)

Lines stay as they are set, as in PG-19 and most plain-text books: whether one ends a paragraph is
told by the page's geometry, which its text has no longer, and guessing would run verse, code and
tables together. A word that a hyphen cuts at the end of a line is joined, pages included, where
both halves are lower case and the file does not write it with a hyphen elsewhere; ligatures become
letters. Up to two lines at the top and at the bottom of the pages that are, digits aside, the same
on most of them (titles, page numbers) are left out. Running heads that change with the chapter
stay, and so does the order in which the file draws its text.

A file that needs a password, one without a text layer and a broken one are bad records. pypdf
unpacks at most 75 MB of a stream. Memory: one file.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.readers._books import AbstractBooks
from giraffe_cli.corpus.readers._pdf_text import joined_words, legible, without_running_lines
from giraffe_cli.corpus.readers._records import Defect, too_long
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit
from giraffe_cli.errors import InvalidInput, first_line

RULES = 1
"""Counts changes of what text is made of what pypdf gives."""
EXTRA = "pip install 'giraffe-cli[pdf]'"


@dataclass(frozen=True)
class Pdf(AbstractBooks):
    """`.pdf` files."""

    kind = "pdf"
    summary = "a .pdf file with a text layer, or pdf:FOLDER for all below it (extra [pdf])"
    group_bytes = 4 << 20  # pypdf takes about 50 ms a page

    def depends_on(self) -> str:
        return f"pypdf {library().__version__}, rules {RULES}"

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        units = super().units(source, name, block_bytes)
        library()
        return units

    def text(self, path: Path) -> str:
        pages = without_running_lines(_pages(path, self.max_doc_bytes))
        if sum(len(line) for page in pages for line in page) < max(1, len(pages)):
            raise Defect("no text layer (scanned?)")
        return joined_words("\n".join(line for page in pages for line in page))

    def example(self, folder: Path) -> str:
        root = folder / "example"
        (root / "inner").mkdir(parents=True)
        for name in ("one.pdf", "inner/two.pdf"):
            (root / name).write_bytes(_EXAMPLE % (32 + len(name), name.encode()))
        return f"{self.kind}:{root}"


def library() -> Any:
    """pypdf.

    Raises:
        InvalidInput: it is not installed.
    """
    try:
        with _quiet():
            import pypdf
    except ImportError as error:
        raise InvalidInput(f"PDF files need pypdf: {error}", EXTRA) from error
    return pypdf


def _pages(path: Path, limit: int) -> list[list[str]]:
    """The lines of each page that are not blank.

    Raises:
        Defect: the file needs a password, is broken, or holds more than `limit` bytes of text.
    """
    pypdf, pages, size = library(), list[list[str]](), 0
    try:
        with open(path, "rb") as file, _quiet():
            for page in pypdf.PdfReader(file).pages:
                text = legible(page.extract_text())
                size += len(text.encode())
                if size > limit:
                    raise too_long(limit)
                pages.append([line.rstrip() for line in text.split("\n") if line.strip()])
    except (Defect, OSError, MemoryError):
        raise
    except pypdf.errors.FileNotDecryptedError as error:
        raise Defect("encrypted (it needs a password)") from error
    except pypdf.errors.DependencyError as error:
        raise Defect("encrypted with AES, which needs cryptography", f": {EXTRA}") from error
    except Exception as error:  # pypdf says that broken files may raise anything
        raise Defect("the PDF file is damaged", f" ({first_line(error)})") from error
    return pages


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What pypdf mends in a file and says of it is no news to who packs a thousand of them."""
    logger = logging.getLogger("pypdf")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


_EXAMPLE = b"""%%PDF-1.4
1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj
2 0 obj <</Type/Pages/Kids[3 0 R]/Count 1>> endobj
3 0 obj <</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>
>> endobj
4 0 obj <</Length %d>> stream
BT /F 9 Tf 9 9 Td (The text of %s) Tj ET
endstream endobj
5 0 obj <</Type/Font/Subtype/Type1/BaseFont/Helvetica>> endobj
trailer <</Root 1 0 R>>
startxref 0
%%%%EOF
"""
