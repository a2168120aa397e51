"""Which file of a repository needs which: what its import lines name, found among its files.

    a/b.py: `from ..c import d`  →  c/d.py, else c.py or c/__init__.py

Lines are matched, not parsed: a false edge costs a place in an order, nothing else. Python, C and
C++, JavaScript and TypeScript, Rust, Go, Java, Kotlin, Scala and Ruby.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

PYTHON = re.compile(
    r"^[ \t]*(?:from[ \t]+(\.*)([\w.]*)[ \t]+import[ \t]+\(?([\w, \t]+)|import[ \t]+([\w., \t]+))",
    re.MULTILINE,
)
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
SCRIPT = re.compile(r"""(?:from|require\(|import\(?)\s*['"](\.[^'"\n]+)['"]""")
RUST = re.compile(r"^[ \t]*(?:pub(?:\([^)]*\))? )?(?:mod (\w+);|use crate::([\w:]+))", re.MULTILINE)
JVM = re.compile(r"^[ \t]*import (?:static )?([\w.]+)", re.MULTILINE)
GO = re.compile(r'^[ \t]*(?:import )?(?:[\w.]+ )?"([\w./-]+)"$', re.MULTILINE)
RUBY = re.compile(r"""^[ \t]*require_relative\s*\(?['"]([^'"\n]+)['"]""", re.MULTILINE)

PLAIN = {
    INCLUDE: (".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".cu", ".cuh"),
    SCRIPT: (".js", ".jsx", ".ts", ".tsx", ".mjs", ".vue"),
    RUBY: (".rb",),
}
"""Patterns whose one group is a path beside the file."""
INDEX_NAMES = ("__init__", "index", "mod")
SOURCE_ROOTS = ("", "src", "lib", "python")
"""Where absolute names of one part are looked for; longer ones are found by their end."""


def imported_names(path: str, text: str) -> list[str]:
    """What the file at `path` names, as paths without regard to what there is.

    A name that begins with `./` is meant from the root of the repository alone.
    """
    suffix, folder = PurePosixPath(path).suffix.lower(), posixpath.dirname(path)
    if suffix in (".py", ".pyi", ".pyx"):
        return list(_python(folder, text))
    if suffix == ".rs":
        inner = posixpath.join(folder, PurePosixPath(path).stem)
        return [
            name
            for mod, used in RUST.findall(text)
            for name in (
                [_rooted(folder, mod), _rooted(inner, mod)] if mod else _prefixes(used, "::")
            )
        ]
    if suffix in (".java", ".kt", ".scala"):
        return [name.replace(".", "/") for name in JVM.findall(text)]
    if suffix == ".go":
        return [f"{name}/" for name in GO.findall(text)]
    for pattern, suffixes in PLAIN.items():
        if suffix in suffixes:
            found: list[str] = pattern.findall(text)
            return [name for each in found for name in (_rooted(folder, each), each)]
    return []


class FileIndex:
    """The files of a repository by what an import may call them."""

    def __init__(self, paths: list[str]) -> None:
        """`paths` relative to the root; the first of several that fit is meant."""
        self._exact: dict[str, str] = {}
        self._ends: dict[str, list[tuple[str, str]]] = {}
        self._folders: dict[str, list[str]] = {}
        for path in paths:
            stem = path.removesuffix(PurePosixPath(path).suffix)
            names = [path, stem]
            if posixpath.basename(stem) in INDEX_NAMES:
                names.append(posixpath.dirname(stem))
            for name in filter(None, names):
                self._exact.setdefault(name, path)
                self._ends.setdefault(posixpath.basename(name), []).append((name, path))
            self._folders.setdefault(posixpath.dirname(path), []).append(path)

    def find(self, name: str) -> list[str]:
        """The files that `name` means; none for what is not of this repository."""
        if name.endswith("/"):  # a Go package: a folder, by the end of its address
            parts = name.rstrip("/").split("/")
            ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
            return next((self._folders[end] for end in ends if end in self._folders), [])
        if name.startswith("./"):
            found = self._exact.get(name[2:])
            return [found] if found else []
        for root in SOURCE_ROOTS:
            if path := self._exact.get(posixpath.join(root, name)):
                return [path]
        if "/" not in name:
            return []
        known_ends = self._ends.get(posixpath.basename(name), [])
        return [path for known, path in known_ends if known.endswith(f"/{name}")][:1]


def _python(folder: str, text: str) -> Iterator[str]:
    for dots, module, names, plain in PYTHON.findall(text):
        if plain:
            for name in plain.split(","):
                yield (name.split() or [""])[0].replace(".", "/")
            continue
        base = module.replace(".", "/")
        if dots:
            base = _rooted(posixpath.join(folder, *[".."] * (len(dots) - 1)), base)
        else:
            yield _rooted(folder, base)  # a script beside its module
        for name in names.split(","):
            if words := name.split():
                yield f"{base}/{words[0]}"
        yield base


def _rooted(folder: str, name: str) -> str:
    return "./" + posixpath.normpath(posixpath.join(folder, name))


def _prefixes(name: str, separator: str) -> list[str]:
    """`a::b::c` → `a/b/c`, `a/b`, `a`: an item of a module is named like a module."""
    parts = [part for part in name.split(separator) if part]
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
