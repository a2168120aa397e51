"""`repo:FOLDER`: a code repository as one long document, related files together.

    repo:giraffe/ →  # README.md
                     ...
                     # giraffe/errors.py
                     ...
                     # giraffe/config.py          (imports giraffe/errors.py)

The readme comes first. Then come the files in the order of their paths, a folder's files before its
subfolders, except that a Python file follows what it imports. Each stands under a line with its
path. A folder whose subfolders are repositories (hold `.git`, as it does not) is one document each.

Left out: hidden files and folders; folders named as in `LEFT_OUT` (vendored code, build output);
minified files; what the repository's own `.gitignore` names, of which only the one at its root is
read and `**` means `*`; what is no text; links.
Memory: one repository's text, at most twice `max_doc_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from giraffe_cli.corpus.base import (
    BLOCK_BYTES,
    AbstractReader,
    BadRecords,
    Document,
    Unit,
)
from giraffe_cli.corpus.readers._files import link_defect, read_text, text_files
from giraffe_cli.corpus.readers._imports import in_import_order
from giraffe_cli.corpus.readers._records import too_long
from giraffe_cli.errors import InvalidInput

NAME = "code-repo"
PREFIX = "repo:"
LEFT_OUT = frozenset(
    "build dist out target bin obj node_modules bower_components vendor vendored _vendor third_party"
    " third-party thirdparty external site-packages venv env virtualenv __pycache__ htmlcov".split()
)
MINIFIED = (".min.js", ".min.css", ".egg-info")


@dataclass(frozen=True)
class CodeRepo(AbstractReader):
    """A folder of code, or a folder of such folders."""

    summary = f"{PREFIX}FOLDER, a code repository as one document (or a folder of repositories)"

    def claims(self, source: str) -> bool:
        return source.startswith(PREFIX)

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        folder = Path(source.removeprefix(PREFIX))
        if not folder.is_dir():
            kind = "is no folder" if folder.exists() else "does not exist"
            raise InvalidInput(f"`{folder}` {kind}", f"name a repository's folder: {PREFIX}FOLDER")
        units = [_unit(root, name) for root in _repositories(folder)]
        if not any(unit.files for unit in units):
            raise InvalidInput(f"{folder} holds no text file", "name the folder of a repository")
        return units

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        for reason, count in unit.passed_over:
            bad.skip(reason, count)
        if unit.size > self.max_doc_bytes:
            defect = too_long(self.max_doc_bytes)
            bad.report(unit.root, defect.reason, f", the repository has {unit.size:,}")
            return
        files = self._texts(unit, bad)
        if files:
            ordered = sorted(in_import_order(files), key=lambda path: not _is_readme(path))
            text = "".join(f"# {path}\n{files[path]}\n" for path in ordered)
            yield Document(unit.name, text, unit.source)

    def example(self, folder: Path) -> str:
        for name in ("first", "second"):
            root = folder / "example" / name
            (root / ".git").mkdir(parents=True)
            (root / "README.md").write_text(f"# {name}")
            (root / "app.py").write_text("import tools\n")
            (root / "tools.py").write_text("print('a tool')\n")
        return f"{PREFIX}{folder / 'example'}"

    def _texts(self, unit: Unit, bad: BadRecords) -> dict[str, str]:
        """Path → text, in the order of the paths; a bad file is reported and left out."""
        root, files = Path(unit.root), {}
        for span in unit.files:
            path = Path(span.path)
            if path.is_symlink() and link_defect(path, root) is None:
                bad.skip("link inside a repository")
                continue
            text = read_text(path, root, self.max_doc_bytes, bad)
            if text is not None:
                files[unit.relative(span.path)] = text
        return files


def _repositories(folder: Path) -> list[Path]:
    """The folder itself, or those of its subfolders that git made, by name."""
    if (folder / ".git").exists():
        return [folder]
    inner = sorted(child for child in folder.iterdir() if (child / ".git").exists())
    return inner or [folder]


def _unit(root: Path, source: str) -> Unit:
    spans, others = text_files(root, _left_out(root))
    passed_over = tuple((f"not a text suffix: {kind}", n) for kind, n in sorted(others.items()))
    size = sum(span.size for span in spans)
    # "." has no name of its own.
    name = root.name or root.resolve().name
    return Unit(source, NAME, name, str(root), tuple(spans), size, passed_over, walked=True)


def _is_readme(path: str) -> bool:
    return "/" not in path and path.lower().partition(".")[0] == "readme"


def _left_out(root: Path) -> Callable[[Path], bool]:
    """Whether a path below `root` is to be passed over."""
    patterns = _ignored(root / ".gitignore")

    def left_out(path: Path) -> bool:
        if path.name in LEFT_OUT and path.is_dir() or path.name.endswith(MINIFIED):
            return True
        relative, ignored = path.relative_to(root).as_posix(), False
        for pattern in patterns:  # the last that fits decides, as in git
            if _fits(pattern.removeprefix("!"), path, relative):
                ignored = not pattern.startswith("!")
        return ignored

    return left_out


def _ignored(file: Path) -> list[str]:
    if not file.is_file() or file.is_symlink():
        return []
    lines = file.read_bytes().decode("utf-8-sig", "replace").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]


def _fits(pattern: str, path: Path, relative: str) -> bool:
    """git's rule: a pattern with a slash before its end is a path from the root, else a name."""
    if pattern.endswith("/"):
        if not path.is_dir():
            return False
        pattern = pattern[:-1]
    subject = relative if "/" in pattern else path.name
    pattern = pattern.removeprefix("/").replace("**/", "*").replace("**", "*")
    return fnmatchcase(subject, pattern)
