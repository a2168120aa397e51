"""`python-stdlib`: the sources of the running Python's standard library, long texts on any machine.

A top-level package is one document, its files in the order of their paths, each under a line with
its path; a single module is a document of its own. CPython 3.11: 195 documents, 9.6 M characters,
38 of them of 60,000 characters or more. Left out: tests, build output, and what is generated and
no text to learn from (the codec tables of `encodings`, the help topics of `pydoc_data`).

It is 10 MB and one unit.

    python-stdlib/asyncio:  # asyncio/__init__.py
                            \"\"\"The asyncio package, tracking PEP 3156.\"\"\"
                            ...
"""

from __future__ import annotations

import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size
from giraffe_cli.corpus.readers._records import Defect, check_length
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of
from giraffe_cli.errors import InvalidInput

NAME = "python-stdlib"
LEFT_OUT = frozenset(
    "test tests idle_test encodings pydoc_data lib2to3 turtledemo site-packages dist-packages"
    " lib-dynload __pycache__".split()
)
BUILD_OUTPUT = ("_sysconfigdata", "config-")
"""Written when Python is built: paths and compiler flags of one machine."""


@dataclass(frozen=True)
class PythonStdlib(AbstractReader):
    """Standard-library sources of the interpreter that runs."""

    summary = f"the word {NAME}: the sources of the running Python's standard library"

    def claims(self, source: str) -> bool:
        return source == NAME

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        root = Path(sysconfig.get_path("stdlib"))
        paths = sorted(_sources(root), key=lambda path: (_document_name(path), path.parts))
        if not paths:
            raise InvalidInput(
                f"this Python has no standard-library sources in {root}",
                "name another corpus with --data",
            )
        whole = [_whole(root / path) for path in paths]
        return units_of(whole, sys.maxsize, name, NAME, str(root))

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        root = Path(unit.root)
        paths = [Path(unit.relative(span.path)) for span in unit.files]
        for name, files in groupby(paths, key=_document_name):
            text = "".join(_with_header(root, path, bad) for path in files)
            try:
                check_length(text, self.max_doc_bytes)
            except Defect as defect:
                bad.report(f"{NAME}/{name}", defect.reason)
            else:
                yield Document(f"{NAME}/{name}", text, unit.source)

    def example(self, folder: Path) -> str:
        return NAME


def _sources(root: Path) -> Iterator[Path]:
    """Relative paths; folders that are left out are not entered (site-packages may be huge)."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            n for n in subfolders if n not in LEFT_OUT and not n.startswith(BUILD_OUTPUT)
        ]
        yield from (
            Path(folder, name).relative_to(root)
            for name in names
            if name.endswith(".py") and not name.startswith(BUILD_OUTPUT)
        )


def _whole(path: Path) -> FileSpan:
    size = file_size(path) if path.exists() else 0  # a link to nothing is told when it is read
    return FileSpan(str(path), 0, size, size)


def _document_name(relative: Path) -> str:
    """`asyncio/events.py` → `asyncio`, `ast.py` → `ast`."""
    return relative.parts[0].removesuffix(".py")


def _with_header(root: Path, relative: Path, bad: BadRecords) -> str:
    try:
        # Honours the encoding that a source file declares.
        with tokenize.open(root / relative) as handle:
            return f"# {relative.as_posix()}\n{handle.read()}\n"
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        bad.report(str(root / relative), "cannot be read", f": {error}")
        return ""
