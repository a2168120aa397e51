"""Text files below a folder: which there are, and what each holds.

    root/README, root/b.md, root/a/z.py: each folder's files before its subfolders, by code point

Nothing is read from outside the folder that was named: a link that leads out of it, back above
itself, or nowhere is a bad record.
"""

from __future__ import annotations

import codecs
import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from giraffe_cli.corpus.base import BadRecords, missing
from giraffe_cli.corpus.readers._records import Defect, is_blank, too_long
from giraffe_cli.corpus.unit import FileSpan
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import LOCK, ends_with_seal

SUFFIXES = frozenset(
    ".txt .text .md .markdown .mdx .rst .adoc .org .tex .html .htm .xml .log"
    " .py .pyi .pyx .ipynb .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .scala .swift"
    " .js .jsx .ts .tsx .mjs .css .scss .vue .rb .pl .pm .php .lua .r .jl .hs .ml .mli .ex .exs"
    " .erl .clj .lisp .el .scm .sh .bash .zsh .sql .proto .cs .fs .dart .zig .nim .f90 .f .asm .s"
    " .toml .yaml .yml .ini .cfg .cmake .mk".split()
)
NAMES = frozenset("readme license copying notice authors changelog makefile dockerfile".split())
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and what a file that begins with one is written in, the longer ones first."""
OWN = ("run.yaml", "manifest.json", "results.json", "rope.json", "plan.json")
"""One of which lies, sealed, in every folder that a command of giraffe wrote."""
BINARY_PROBE = 8192
"""Bytes looked through for a NUL, which no text holds; git's rule, with its number."""


def is_text_name(path: Path) -> bool:
    """Whether suffix or name promise text."""
    return path.suffix.lower() in SUFFIXES or path.name.lower() in NAMES


def suffix_of(path: Path) -> str:
    """What files that are not read are counted by: `.png`."""
    return path.suffix.lower() or "no suffix"


def listed(suffixes: Counter[str]) -> str:
    """`3 .jsonl, 1 .png`."""
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))


def nothing(_: Path) -> bool:
    """Leaves nothing out."""
    return False


def walk(root: Path, left_out: Callable[[Path], bool] = nothing) -> Iterator[Path]:
    """Every file, and every link to a folder, under `root`; hidden ones and `left_out` are not, nor
    is what giraffe wrote: a run below its own corpus would be read as a part of it.

    A folder that is left out is not entered.

    Raises:
        InvalidInput: a folder cannot be listed.
    """
    for folder, subfolders, names in os.walk(root, onerror=_unreadable):
        # Sorted by code point, so that every machine and locale walks the same way.
        subfolders[:] = [
            name for name in _kept(folder, subfolders, left_out) if not is_own(Path(folder, name))
        ]
        # os.walk does not enter linked folders; they are judged like files.
        linked = [name for name in subfolders if Path(folder, name).is_symlink()]
        yield from (Path(folder, name) for name in _kept(folder, [*names, *linked], left_out))


def _kept(folder: str, names: list[str], left_out: Callable[[Path], bool]) -> list[str]:
    return sorted(n for n in names if not n.startswith(".") and not left_out(Path(folder, n)))


def is_own(folder: Path) -> bool:
    """Whether a command of giraffe wrote `folder`, or is writing it or was stopped."""
    return (folder / LOCK).exists() or any(ends_with_seal(folder / name) for name in OWN)


def text_files(
    root: Path, left_out: Callable[[Path], bool] = nothing
) -> tuple[list[FileSpan], Counter[str]]:
    """The texts under `root`, in order, and how many files of other suffixes there are."""
    return files_below(root, is_text_name, left_out)


def files_below(
    root: Path, taken: Callable[[Path], bool], left_out: Callable[[Path], bool] = nothing
) -> tuple[list[FileSpan], Counter[str]]:
    """The files under `root` whose names are `taken`, in order, and the other ones by suffix.

    Linked folders are among what is to be read: `read_file` says what is wrong with them.
    """
    spans: list[FileSpan] = []
    others: Counter[str] = Counter()
    for path in walk(root, left_out):
        if path.is_symlink() and (path.is_dir() or not path.exists()):
            spans.append(FileSpan(str(path), 0, 0, 0))
        elif taken(path) and path.is_file():
            size = path.stat().st_size
            spans.append(FileSpan(str(path), 0, size, size))
        elif path.is_file():
            others[suffix_of(path)] += 1
    return spans, others


def read_text(path: Path, root: Path | None, max_bytes: int, bad: BadRecords) -> str | None:
    """The file's text; None when it is binary, empty or a bad record, which is reported.

    UTF-8, or UTF-16 and UTF-32 behind their byte order marks (Windows writes them); binary where
    these cannot be read so. Else a file is binary when its first 8192 bytes hold a NUL; one further
    on is a defect.
    """

    def text(path: Path) -> str | None:
        if path.stat().st_size > max_bytes:
            raise too_long(max_bytes)
        return _text(path, path.read_bytes(), bad)

    return read_file(path, root, bad, text)


def read_file(
    path: Path, root: Path | None, bad: BadRecords, text: Callable[[Path], str | None]
) -> str | None:
    """What `text` makes of the file; None where it raises a `Defect`, which is reported.

    `root` is the folder that links may not leave, None for a file that the user named.
    """
    try:
        if root is not None and path.is_symlink():
            if not _leads_to_a_file(path, root):
                bad.skip("link to a folder of the same source")
                return None
            if _is_read_itself(path, root):
                bad.skip("link to a file of the same source")
                return None
        return text(path)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        bad.report(str(path), "cannot be read", f": {error.strerror or error}")
    except Defect as defect:
        bad.report(str(path), defect.reason, defect.detail)
    return None


def link_defect(path: Path, root: Path) -> str | None:
    """What is wrong with a link below `root`; None for one that leads to something inside."""
    try:
        target = Path(os.path.realpath(path, strict=True))
    except OSError as error:
        circle = error.errno == errno.ELOOP
        return "a link that leads in a circle" if circle else "a link that leads nowhere"
    if not target.is_relative_to(os.path.realpath(root)):
        return "a link that leads out of the folder"
    if Path(os.path.realpath(path.parent)).is_relative_to(target):
        return "a link that leads in a circle"
    return None


def _leads_to_a_file(path: Path, root: Path) -> bool:
    if reason := link_defect(path, root):
        outside = "; to read what it leads to, name that as a source" if "out of" in reason else ""
        raise Defect(reason, outside)
    return path.is_file()


def _is_read_itself(link: Path, root: Path) -> bool:
    """Whether what `link` leads to, inside `root`, is among the files that are read there: no part
    of its path is hidden, and its name promises what the link's does."""
    target = Path(os.path.realpath(link)).relative_to(os.path.realpath(root))
    is_hidden = any(part.startswith(".") for part in target.parts)
    return not is_hidden and (target.suffix.lower(), is_text_name(target)) == (
        link.suffix.lower(),
        is_text_name(link),
    )


def _text(path: Path, data: bytes, bad: BadRecords) -> str | None:
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    nul = data.find(b"\0") if encoding == "utf-8" else -1
    if 0 <= nul < BINARY_PROBE:
        bad.skip("binary file")
        return None
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            bad.report(f"{path}:{_line_of(data, error.start)}", "not valid UTF-8")
        else:  # it began with two bytes like a mark
            bad.skip("binary file")
        return None
    if nul >= 0:
        bad.report(f"{path}:{_line_of(data, nul)}", "holds a NUL character")
        return None
    if "\0" in text:  # of another encoding
        bad.skip("binary file")
        return None
    text = text.removeprefix("\ufeff")
    if is_blank(text):
        bad.skip("empty file")
        return None
    return text


def _line_of(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _unreadable(error: OSError) -> None:
    raise InvalidInput(f"cannot read {error.filename}: {error.strerror}") from error
