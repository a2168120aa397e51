"""One source → units: a glob, a folder of records, or what its reader makes of it.

A path with `*`, `?` or `[` that does not exist as it stands is a glob (`**` for any depth), sorted
by code point. A folder whose files are records (JSONL, parquet, Arrow) is those files; any other
folder is a tree of texts. `-` is standard input, and `repo:FOLDER`, `epub:FOLDER`, `pdf:FOLDER`,
`hf:OWNER/NAME`, `python-stdlib` are what their readers say.
"""

from __future__ import annotations

import functools
import glob
import os
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.base import BadRecords, reader_for, readers
from giraffe_cli.corpus.readers._files import (
    NAMES,
    is_own,
    is_text_name,
    link_defect,
    listed,
    suffix_of,
    walk,
)
from giraffe_cli.corpus.readers._lines import begins_with_records
from giraffe_cli.corpus.readers.arrow import is_saved_dataset
from giraffe_cli.corpus.source_names import Source
from giraffe_cli.corpus.unit import BLOCK_BYTES, Unit, units_of
from giraffe_cli.errors import InvalidInput

TWICE = "link to a file of the same source"


def units_of_source(source: Source, knobs: dict[str, Any]) -> list[Unit]:
    """What one source is cut into, with the `knobs` of `PackConfig` that its reader has.

    Raises:
        InvalidInput: it is missing, unreadable, ambiguous or holds nothing to read.
    """
    block_bytes, path = knobs.get("block_bytes", BLOCK_BYTES), Path(source.path)
    if glob.has_magic(source.path) and not path.exists() and _is_here(source.path):
        files, passed_over = _matches(source.path)
        return _units_of_files(source.name, files, _fixed_part(source.path), passed_over, knobs)
    if path.is_dir() and (records := _records_below(path, knobs)):
        return _records_folder(source, records, knobs)
    return reader_for(source.path, knobs).units(source.path, source.name, block_bytes)


def _is_here(pattern: str) -> bool:
    """Whether a glob is of files here, and not behind the name of a reader, as in `repo:*`."""
    return ":" not in pattern or Path(_fixed_part(pattern)).is_dir()


def _matches(pattern: str) -> tuple[list[str], Counter[str]]:
    """The files that a glob matches, in order.

    Raises:
        InvalidInput: none, or no pattern.
    """
    root = Path(_fixed_part(pattern))
    if root.is_dir() and any(map(glob.has_magic, Path(pattern).parts[:-1])):
        _check_readable(root)
    # Python 3.13 takes `**b` for `*b`, and earlier ones refuse it
    if any("**" in part and part != "**" for part in Path(pattern).parts):
        raise InvalidInput(
            f"`{pattern}` is no pattern: `**` stands for whole folders", "write `**` between two /"
        )
    # Path.glob follows no linked folder under `**`, which could lead in a circle.
    every = list(root.glob(str(Path(pattern).relative_to(root))))
    matches = [
        path
        for path in every
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    files = sorted(str(path) for path in matches if not path.is_dir())
    if "**" in pattern:  # a run below its own corpus is no part of it, as in a tree
        own = functools.cache(is_own)
        files = [name for name in files if not any(map(own, _between(root, Path(name))))]
    if not files:
        folders = f"; {len(matches)} folders do" if matches else ""
        raise InvalidInput(f"no file matches `{pattern}`{folders}", "check the pattern")
    folders_matched = 0 if "**" in pattern else len(matches) - len(files)
    kept = _once(files)
    passed_over = {"folder that a glob matched": folders_matched, TWICE: len(files) - len(kept)}
    return kept, Counter(passed_over)


def _once(files: list[str]) -> list[str]:
    """Without links to others of them, which would be read twice."""
    links = {name for name in files if Path(name).is_symlink()}
    real = {os.path.realpath(name) for name in files if name not in links} if links else set()
    return [name for name in files if name not in links or os.path.realpath(name) not in real]


def _between(root: Path, path: Path) -> list[Path]:
    """The folders below `root` that `path` lies in."""
    depth = len(path.relative_to(root).parts)
    return list(path.parents)[: depth - 1]


def _check_readable(root: Path) -> None:
    """Path.glob passes over folders it may not list.

    Raises:
        InvalidInput: there is one below `root`.
    """
    for _ in walk(root):
        pass


def _fixed_part(pattern: str) -> str:
    """`data/*/a.jsonl` → `data`: the folder that ids are relative to."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:fixed]))


def _units_of_files(
    name: str, files: list[str], root: str, passed_over: Counter[str], knobs: dict[str, Any]
) -> list[Unit]:
    """Units of single files: small neighbours of one kind together, large ones in pieces."""
    block_bytes = knobs.get("block_bytes", BLOCK_BYTES)
    units: list[Unit] = []
    for path in files:
        units += reader_for(path, knobs).units(path, name, block_bytes)
    merged: list[Unit] = []
    for (reader, whole), run in groupby(units, key=lambda u: (u.reader, u.files[0].whole)):
        spans = [unit.files[0] for unit in run]
        together = min(block_bytes, readers()[reader].group_bytes) if whole else 0
        merged += units_of(spans, together, name, reader, root)
    counted = tuple(sorted((reason, n) for reason, n in passed_over.items() if n))
    return [replace(merged[0], passed_over=counted), *merged[1:]]


def _records_below(folder: Path, knobs: dict[str, Any]) -> list[Path]:
    """The record files in `folder` when it is a folder of records; empty when it is texts.

    Readmes, licences and `.json` files make no difference, but for arrays of objects that have the
    text's field, unless other records are there.

    Raises:
        InvalidInput: it is both, and most of it is records.
    """
    if is_saved_dataset(folder):
        return []
    kinds = [kind() for kind in readers().values() if kind.holds_records]
    found = [path for path in walk(folder) if not path.is_dir()]
    records = [path for path in found if any(kind.claims(str(path)) for kind in kinds)]
    certain = [path for path in records if path.suffix.lower() != ".json"]
    texts = [path for path in found if is_text_name(path) and path.stem.lower() not in NAMES]
    if not texts:
        return certain or records
    field = knobs.get("text_field", "text")
    certain = certain or [path for path in records if begins_with_records(str(path), field)]
    if _bytes(certain) > _bytes(texts):
        held = {suffix_of(path): 1 for path in certain}
        raise InvalidInput(
            f"{folder} holds records ({listed(Counter(map(suffix_of, certain)))}) "
            f"and texts ({listed(Counter(map(suffix_of, texts)))})",
            "say with a glob which are meant: "
            + " or ".join(f"'{folder}/**/*{suffix}'" for suffix in held),
        )
    return []  # a tree; its reader counts the records that it passes over


def _bytes(paths: list[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def _records_folder(source: Source, files: list[Path], knobs: dict[str, Any]) -> list[Unit]:
    """Units of a folder of records; a link that leads out of it is a bad record.

    Raises:
        InvalidInput: under `on_bad: fail`, such a link.
    """
    root, bad = Path(source.path), BadRecords(knobs["on_bad"])
    kept: list[str] = []
    once = set(_once(list(map(str, files))))
    for path in files:
        reason = link_defect(path, root) if path.is_symlink() else None
        if reason:
            bad.report(str(path), reason, "; name the file itself to read it")
        elif str(path) not in once:
            bad.skip(TWICE)
        else:
            kept.append(str(path))
    if not kept:
        raise InvalidInput(f"{root} holds nothing to read: {bad.skipped}", "name other files")
    passed_over, known = Counter(bad.skipped), set(files)
    for path in walk(root):
        if path.is_file() and path not in known:
            passed_over[f"beside records: {suffix_of(path)}"] += 1
    return _units_of_files(source.name, kept, source.path, passed_over, knobs)
