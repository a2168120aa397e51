"""Text files whose text is not what a reader of them sees: web pages, notebooks.

    a.html    <p>Call me <i>Ishmael</i>.</p> …           →  what the page shows (`_xhtml.py`)
    b.ipynb   {"cells": [{"source": ["x = 1"], "outputs": [a picture in base64]}]}  →  the cells

A repository keeps its pages as they are written: there they are code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.base import BadRecords
from giraffe_cli.corpus.readers._files import read_file, read_text
from giraffe_cli.corpus.readers._markup import read_as_text
from giraffe_cli.corpus.readers._records import Defect, check_length, checked, is_blank, too_long
from giraffe_cli.corpus.readers._xhtml import text_of_page

PAGES = frozenset({".html", ".htm"})
NOTEBOOK = ".ipynb"


def read_shown(path: Path, root: Path | None, max_bytes: int, bad: BadRecords) -> str | None:
    """The text of a file as `read_text` reads it, of a page and a notebook what they show; None
    where there is none, which is reported."""

    def page(path: Path) -> str | None:
        if path.stat().st_size > max_bytes:
            raise too_long(max_bytes)
        text = text_of_page(read_as_text(path.read_bytes()), max_bytes, max_bytes)
        check_length(text, max_bytes)
        return _unless_blank(checked(text, "it"), bad)

    if path.suffix.lower() in PAGES:
        return read_file(path, root, bad, page)
    return read_cells(path, root, max_bytes, bad)


def read_cells(path: Path, root: Path | None, max_bytes: int, bad: BadRecords) -> str | None:
    """As `read_text`, of a notebook what its cells hold: neither outputs nor pictures."""
    text = read_text(path, root, max_bytes, bad)
    if text is None or path.suffix.lower() != NOTEBOOK:
        return text
    try:
        return _unless_blank(checked("\n\n".join(_cells(text)), "it"), bad)
    except Defect as defect:
        bad.report(str(path), defect.reason, defect.detail)
    return None


def _unless_blank(text: str, bad: BadRecords) -> str | None:
    if not is_blank(text):
        return text
    bad.skip("empty file")
    return None


def _cells(text: str) -> Iterator[str]:
    """Of Markdown and code, in order (nbformat 4; version 3 has them in worksheets, code as
    `input`).

    Raises:
        Defect: it is no notebook.
    """
    try:
        notebook: Any = json.loads(text)
        sheets = [notebook, *notebook.get("worksheets", [])]
        for cell in [cell for sheet in sheets for cell in sheet.get("cells", [])]:
            source = cell.get("source", cell.get("input", ""))
            written = source if isinstance(source, str) else "".join(source)
            if not is_blank(written):
                yield written.strip("\n")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise Defect("not a notebook", f": {error}") from error
