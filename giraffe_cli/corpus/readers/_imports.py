"""Python files after what they import, as far as the text of the imports tells.

    {"a.py": "from pkg import b", "pkg/b.py": ""} → pkg/b.py, a.py

A file that imports nothing of the same repository stays where it stood, beside its neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

IMPORT = re.compile(
    r"^[ \t]*(?:from[ \t]+(?P<origin>[.\w]+)[ \t]+import[ \t]*(?:\((?P<many>[^)]*)\)|(?P<few>[^\n#]*))"
    r"|import[ \t]+(?P<modules>[^\n#]*))",
    re.MULTILINE,
)


def in_import_order(files: Mapping[str, str]) -> list[str]:
    """The paths of `files` (path → text), each Python file after those that it imports.

    Imports are followed depth first in the order of the text; in a circle, what was asked for first
    comes last. Relative order is otherwise that of `files`.
    """
    modules = _modules(files)
    ordered: list[str] = []
    entered: set[str] = set()
    for start in files:
        stack = [(start, iter([start]))]
        while stack:  # a loop: chains of imports may be longer than Python's recursion limit
            path, wanted = stack[-1]
            following = next((p for p in wanted if p not in entered), None)
            if following is None:
                stack.pop()
                if stack:
                    ordered.append(path)
                continue
            entered.add(following)
            stack.append((following, _imported(following, files[following], modules)))
    return ordered


def _modules(files: Mapping[str, str]) -> dict[str, str]:
    """Dotted name → path; a file's name begins at the outermost folder that is a package."""
    modules: dict[str, str] = {}
    for path in files:
        if path.endswith(".py"):
            modules.setdefault(_dotted(path, files), path)
            modules.setdefault(path.removesuffix(".py").replace("/", "."), path)
    return modules


def _dotted(path: str, files: Mapping[str, str]) -> str:
    pure = PurePosixPath(path)
    parts = [] if pure.stem == "__init__" else [pure.stem]
    folder = pure.parent
    while folder.name and f"{folder}/__init__.py" in files:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts)


def _imported(path: str, text: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Paths of the modules that one file names, in the order of its text."""
    if not path.endswith(".py"):
        return
    package = PurePosixPath(path).parent.as_posix().replace("/", ".").strip(".")
    for match in IMPORT.finditer(text):
        for name in _names(match, package):
            for candidate in (name, f"{name}.__init__"):
                if candidate in modules:
                    yield modules[candidate]


def _names(match: re.Match[str], package: str) -> Iterator[str]:
    """`from a import b, c` → a.b, a.c, a; `from . import b` is relative to `package`."""
    origin = match["origin"]
    if origin is None:
        yield from _listed(match["modules"])
        return
    stem = origin.lstrip(".")
    if level := len(origin) - len(stem):
        parents = package.split(".")[: len(package.split(".")) - (level - 1)]
        stem = ".".join(part for part in [*parents, stem] if part)
    for name in _listed(match["many"] or match["few"] or ""):
        yield f"{stem}.{name}" if stem else name
    yield stem


def _listed(names: str) -> Iterator[str]:
    """`a, b as c` → a, b."""
    bare = re.sub(r"#[^\n]*", "", names)
    yield from (part.split()[0] for part in bare.split(",") if part.strip())
