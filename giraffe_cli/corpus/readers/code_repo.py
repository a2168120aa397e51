"""`repo:FOLDER`: a code repository as one long document, a file behind the files that it imports.

    repo:giraffe →  # README.md
                    ...
                    # giraffe/errors.py
                    ...
                    # giraffe/registry.py       (imports errors)

Readmes of the root come first, then the files in the order of their paths, except that what a file
imports is put before it (a circle is cut where it is entered). Each stands under a line with its
path. A folder without `.git` whose subfolders hold one is a document for each. A repository
of more than `max_doc_bytes` becomes several documents, cut between files: `giraffe`, `giraffe:2`.

Left out: hidden files, what is no text by its name, folders of installed or vendored code and of
build output (`LEFT_OUT`), minified files, and what the `.gitignore` at the root names, which is
counted; those of inner folders are not read.
Memory: one document, and the import lines.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, missing
from giraffe_cli.corpus.readers._files import listed, text_files
from giraffe_cli.corpus.readers._imports import FileIndex, imported_names
from giraffe_cli.corpus.readers._pages import read_cells
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit, units_of
from giraffe_cli.errors import InvalidInput

PREFIX = "repo:"
LEFT_OUT = frozenset(
    "node_modules bower_components site-packages venv __pycache__ vendor vendored _vendor"
    " third_party third-party build dist target".split()
)
"""Folders by their name."""
MINIFIED = (".min.js", ".min.css")


@dataclass(frozen=True)
class CodeRepo(AbstractReader):
    """Repositories, a document each."""

    summary = "repo:FOLDER, a code repository as one document"

    def claims(self, source: str) -> bool:
        return source.startswith(PREFIX)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        root = Path(source.removeprefix(PREFIX))
        if not root.is_dir():
            if root.exists():
                raise InvalidInput(f"`{root}` is no folder", "name a file without `repo:`")
            raise missing(root)
        inner = _repositories_in(root)
        if not inner:
            return [_unit(root, name)]
        units, empty = list[Unit](), list[InvalidInput]()
        for folder in inner:
            try:
                # Named by its folder: its files' names are not unique beside other repositories'.
                units.append(replace(_unit(folder, name), name=folder.name))
            except InvalidInput as error:
                empty.append(error)
        if not units:
            raise empty[0]
        units = _counting(units, "a repository without a text file", len(empty))
        beside = sum(1 for path in root.iterdir() if path.name[0] != ".") - len(inner)
        return _counting(units, "beside the repositories", beside)

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        bad.pass_over(unit)
        root, parts, size, number = Path(unit.root), list[str](), 0, 1
        name = root.resolve().name
        places = {unit.relative(span.path): Path(span.path) for span in unit.files}
        for path in self._ordered(unit, places, bad):
            text = read_cells(places[path], root, self.max_doc_bytes, BadRecords("skip")) or ""
            part = f"# {path}\n{text}\n"
            length = len(part) if part.isascii() else len(part.encode())
            if parts and size + length > self.max_doc_bytes:
                yield Document(_part_name(name, number), "".join(parts), unit.source)
                parts, size, number = [], 0, number + 1
            parts.append(part)
            size += length
        if parts:
            yield Document(_part_name(name, number), "".join(parts), unit.source)

    def example(self, folder: Path) -> str:
        root = folder / "example"
        (root / "inner").mkdir(parents=True)
        (root / "README.md").write_text("# an example")
        (root / "a.py").write_text("from inner import b\n")
        (root / "inner" / "b.py").write_text("ONE = 1\n")
        return f"{PREFIX}{root}"

    def _ordered(self, unit: Unit, places: dict[str, Path], bad: BadRecords) -> list[str]:
        """The keys of `places`, paths below the root; those that cannot be used are reported and
        left out."""
        root, names = Path(unit.root), dict[str, list[str]]()
        for path, place in places.items():
            text = read_cells(place, root, self.max_doc_bytes, bad)
            if text is not None:
                names[path] = imported_names(path, text)
        readmes = [path for path in names if "/" not in path and path.lower().startswith("readme")]
        order = [*readmes, *(path for path in names if path not in readmes)]
        index = FileIndex(order)
        needs = {path: [f for name in names[path] for f in index.find(name)] for path in order}
        return dependencies_first(order, needs)


def _repositories_in(root: Path) -> list[Path]:
    """The subfolders that git made, by name; none where `root` is a repository itself."""
    if (root / ".git").exists():
        return []
    return sorted(p for p in root.iterdir() if (p / ".git").exists() and not p.is_symlink())


def _unit(root: Path, source: str) -> Unit:
    ignored = set[Path]()
    spans, others = text_files(root, _left_out(root, ignored))
    if not spans:
        raise InvalidInput(
            f"{root} holds no text file" + (f"; it holds: {listed(others)}" if others else ""),
            "readable here: .py, .md, .txt and other text",
        )
    [unit] = units_of(spans, sys.maxsize, source, "code-repo", str(root))
    passed_over = [(f"not a text suffix: {s}", n) for s, n in sorted(others.items())]
    passed_over += [("named by .gitignore", len(ignored))] if ignored else []
    return replace(unit, passed_over=tuple(passed_over), walked=True)


def _counting(units: list[Unit], reason: str, count: int) -> list[Unit]:
    """`units`, the first of which counts what none of them holds."""
    if not count:
        return units
    first, *rest = units
    return [replace(first, passed_over=(*first.passed_over, (reason, count))), *rest]


def _left_out(root: Path, ignored: set[Path]) -> Callable[[Path], bool]:
    """Whether a path below `root` is passed over; what `.gitignore` names joins `ignored`."""
    patterns = _ignored(root / ".gitignore")

    def left_out(path: Path) -> bool:
        folder = path.is_dir() and not path.is_symlink()
        if (folder and path.name in LEFT_OUT) or path.name.endswith(MINIFIED):
            return True
        relative = path.relative_to(root).as_posix()
        fitting = [p for p in patterns if _fits(p.removeprefix("!"), relative, folder)]
        if not fitting or fitting[-1].startswith("!"):  # as in git, the last decides
            return False
        ignored.add(path)
        return True

    return left_out


def _ignored(file: Path) -> list[str]:
    if not file.is_file() or file.is_symlink():
        return []
    lines = file.read_bytes().decode("utf-8-sig", "replace").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]


def _fits(pattern: str, relative: str, folder: bool) -> bool:
    """git's rule: a slash before the end makes a path from the root, else it is a name anywhere."""
    if pattern.endswith("/") and not folder:
        return False
    pattern = pattern.removesuffix("/")
    if "/" not in pattern:
        return fnmatchcase(relative.rpartition("/")[2], pattern)
    return _parts_fit(pattern.removeprefix("/").split("/"), relative.split("/"))


def _parts_fit(patterns: list[str], parts: list[str]) -> bool:
    """Folder by folder, as `*` crosses no slash; `**` stands for any number of them, at the end for
    one or more."""
    if not patterns:
        return not parts
    first, *others = patterns
    if first != "**":
        return bool(parts) and fnmatchcase(parts[0], first) and _parts_fit(others, parts[1:])
    least = 0 if others else 1
    return any(_parts_fit(others, parts[count:]) for count in range(least, len(parts) + 1))


def dependencies_first(order: list[str], needs: dict[str, list[str]]) -> list[str]:
    """`order`, with everything that an entry needs put before it; circles are cut on entry.

    dependencies_first(["a", "b", "c"], {"a": ["c"], "b": [], "c": ["a"]}) → ["c", "a", "b"]
    """
    done: dict[str, None] = {}
    entered: set[str] = set()
    for start in order:
        stack = [start]
        while stack:
            path = stack[-1]
            if path in entered:
                done.setdefault(stack.pop())
                continue
            entered.add(path)
            stack += [need for need in reversed(needs[path]) if need not in entered]
    return list(done)


def _part_name(name: str, number: int) -> str:
    return name if number == 1 else f"{name}:{number}"
