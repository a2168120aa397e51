"""A text, Markdown or source file, or a folder of them: one document a file.

    docs/ → `docs/guide.md`, `docs/api/index.md`, ... in the order of their paths

The id is the path relative to the named folder, with forward slashes. Hidden files and folders are
left out, binary files and other suffixes are counted as skipped. Memory: one file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document
from giraffe_cli.errors import InvalidInput

SUFFIXES = frozenset(
    ".txt .text .md .markdown .mdx .rst .adoc .org .tex .html .htm .xml .log"
    " .py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala .swift"
    " .js .jsx .ts .tsx .mjs .css .scss .vue .rb .pl .pm .php .lua .r .jl .hs .ml .mli .ex .exs"
    " .erl .clj .lisp .el .scm .sh .bash .zsh .sql .proto .cs .fs .dart .zig .nim .f90 .f .asm .s"
    " .toml .yaml .yml .ini .cfg .cmake .mk".split()
)
NAMES = frozenset("readme license copying notice authors changelog makefile dockerfile".split())
BINARY_PROBE = 8192
"""Bytes looked through for a NUL, which no text holds; git's rule, with its number."""


def is_text_name(path: Path) -> bool:
    """Whether suffix or name promise text."""
    return path.suffix.lower() in SUFFIXES or path.name.lower() in NAMES


@dataclass(frozen=True)
class TextTree(AbstractReader):
    """Text, Markdown and code."""

    summary = "a text, Markdown or source file, or a folder of them"

    def claims(self, source: str) -> bool:
        path = Path(source)
        return path.is_dir() or (path.is_file() and is_text_name(path))

    def documents(self, source: str, bad: BadRecords) -> Iterator[Document]:
        root, found = Path(source), False
        passed_over: Counter[str] = Counter()
        for path in _files(root):
            if not is_text_name(path):
                passed_over[path.suffix.lower() or "no suffix"] += 1
                continue
            found = True
            text = _read(path, bad)
            if text is not None:
                relative = path.relative_to(root) if root.is_dir() else Path(path.name)
                yield Document(relative.as_posix(), text, source)
        if not found:
            seen = ", ".join(f"{n} {suffix}" for suffix, n in sorted(passed_over.items()))
            raise InvalidInput(
                f"{source} holds no text file" + (f"; it holds: {seen}" if seen else ""),
                "name JSONL files one by one; readable here: .txt, .md, .py and other text",
            )
        for suffix, number in sorted(passed_over.items()):
            for _ in range(number):
                bad.skip(f"not a text suffix: {suffix}")

    def example(self, folder: Path) -> str:
        root = folder / "example"
        (root / "inner").mkdir(parents=True)
        (root / "one.md").write_text("# a text")
        (root / "inner" / "two.py").write_text("print('another')")
        return str(root)


def _files(root: Path) -> Iterator[Path]:
    """Every file under `root` that is not hidden, each folder's files before its subfolders.

    Raises:
        InvalidInput: a folder cannot be listed.
    """
    if root.is_file():
        yield root
        return
    for folder, subfolders, names in os.walk(root, onerror=_unreadable):
        # Sorted by code point, so that every machine and locale walks the same way.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _unreadable(error: OSError) -> None:
    raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from error


def _read(path: Path, bad: BadRecords) -> str | None:
    """The file's text, or None when it is binary, empty or a bad record."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        bad.report(str(path), f"cannot be read: {error.strerror or error}")
        return None
    except UnicodeDecodeError as error:
        if b"\0" in data[:BINARY_PROBE]:
            bad.skip("binary file")
            return None
        bad.report(f"{path}:{_line_of(data, error)}", "not valid UTF-8")
        return None
    if b"\0" in data[:BINARY_PROBE]:
        bad.skip("binary file")
        return None
    if not text.strip():
        bad.skip("empty file")
        return None
    return text


def _line_of(data: bytes, error: UnicodeDecodeError) -> int:
    """The line of the offending byte; decoders count from behind a byte order mark."""
    mark = len(data) - len(error.object)
    return data.count(b"\n", 0, mark + error.start) + 1
