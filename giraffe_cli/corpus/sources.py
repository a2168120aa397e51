"""What the user named → units: names, globs, folders, standard input; and whether a file changed.

    resolve(["books=data/*.jsonl.gz", "docs/"], config) → units of `books`, then units of `docs/`

A source is `PATH`, or `NAME=PATH` where a name is wanted that is not the path. A path with `*`, `?`
or `[` that does not exist as it stands is a glob (`**` for any depth), sorted by code point. A
folder whose files are records (JSONL, parquet, Arrow) is those files; any other folder is a tree of
texts. `-` is standard input, and `repo:FOLDER`, `hf:OWNER/NAME`, `python-stdlib` are what their
readers say.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.config import PackConfig
from giraffe_cli.corpus.base import (
    BLOCK_BYTES,
    AbstractReader,
    BadRecords,
    Document,
    FileSpan,
    Unit,
    make_reader,
    reader_for,
    readers,
    units_of,
)
from giraffe_cli.corpus.readers._files import is_text_name, link_defect, walk
from giraffe_cli.corpus.readers.arrow import is_saved_dataset
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError

NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)", re.DOTALL)
RECORD_READERS = ("jsonl", "parquet", "arrow")
"""Readers of single files of records, which a folder may be full of."""
BESIDE_RECORDS = frozenset("readme license copying notice authors changelog dataset_infos".split())
"""Names of texts that lie beside records without being documents."""
CHUNK = 1 << 20


class Source(NamedTuple):
    """`NAME=PATH` taken apart."""

    name: str
    """What documents and statistics call it."""
    path: str
    """What is read."""


def parse_source(named: str) -> Source:
    """`books=data/*.jsonl` → (`books`, `data/*.jsonl`); a path alone is its own name.

    A path that exists as it stands, such as `lang=en/a.jsonl`, is not taken apart.
    """
    match = NAME.fullmatch(named)
    if match and not Path(named).exists():
        return Source(match[1], match[2])
    return Source(named, named)


def resolve(sources: list[str], config: PackConfig, spool: Path | None = None) -> list[Unit]:
    """The units of all sources, in the order in which they are named.

    `spool` is the folder where standard input is kept for as long as its units are read.

    Raises:
        InvalidInput: a source is missing, unreadable, ambiguous or holds nothing to read.
        UsageError: a source named twice, two that overlap, or a `text_field` that no source has a
            use for.
    """
    check_distinct(sources)
    knobs = {**config.model_dump(), "spool": str(spool or "")}
    units = [unit for named in sources for unit in _units(parse_source(named), knobs)]
    _check_overlap(units)
    kinds = [readers()[name] for name in sorted({unit.reader for unit in units})]
    declared = {entry.name for kind in kinds for entry in fields(kind)}
    default = PackConfig.model_fields["text_field"].default
    if config.text_field != default and "text_field" not in declared:
        raise UsageError(
            f"text field `{config.text_field}` has no effect: no source has fields",
            "leave --text-field out; it is for JSONL, parquet, Arrow and hub sources",
        )
    return units


def reader_of(unit: Unit, config: PackConfig) -> AbstractReader:
    """The reader that cut `unit`, with the knobs that `config` sets."""
    return make_reader(unit.reader, config.model_dump())


def read_source(
    named: str, bad: BadRecords, config: PackConfig | None = None
) -> Iterator[Document]:
    """All documents of one source, unit after unit.

    Raises:
        InvalidInput, UsageError: as `resolve`, and a bad record under `fail`.
        GiraffeError: a file changed while it was read.
    """
    config = config or PackConfig()
    units = resolve([named], config)
    with unchanged(units):
        for unit in units:
            yield from reader_of(unit, config).documents(unit, bad)


def check_distinct(sources: Collection[str]) -> None:
    """Refuse a corpus that would be read twice, as far as names tell.

    Raises:
        UsageError: two sources have one name or one path, or one lies inside the other.
    """
    parsed = [parse_source(named) for named in sources]
    for name, count in Counter(source.name for source in parsed).items():
        if count > 1:
            raise UsageError(f"`{name}` is named twice", "name each once; globs take several")
    places = [Path(source.path.removeprefix("repo:")).resolve() for source in parsed]
    for index, (source, place) in enumerate(zip(parsed, places, strict=True)):
        for other, elsewhere in zip(parsed[:index], places[:index], strict=True):
            if place == elsewhere:
                raise UsageError(f"`{source.path}` is named twice", "name each source once")
            if place in elsewhere.parents or elsewhere in place.parents:
                raise UsageError(f"`{source.name}` and `{other.name}` overlap", "name one of them")


def _check_overlap(units: Iterable[Unit]) -> None:
    """Refuse a file that two sources hold, which globs and links make possible.

    Raises:
        UsageError: the file and both sources are named.
    """
    holder: dict[str, str] = {}
    for unit in units:
        for span in unit.files:
            if holder.setdefault(os.path.realpath(span.path), unit.source) != unit.source:
                other = holder[os.path.realpath(span.path)]
                raise UsageError(
                    f"`{other}` and `{unit.source}` overlap: both hold {span.path}",
                    "name one of them, or narrower globs",
                )


# ── one source → units ────────────────────────────────────────────────────────────────────────


def _units(source: Source, knobs: dict[str, Any]) -> list[Unit]:
    block_bytes, path = knobs.get("block_bytes", BLOCK_BYTES), Path(source.path)
    if glob.has_magic(source.path) and not path.exists() and ":" not in source.path:
        files, passed_over = _matches(source.path)
        return _units_of_files(source.name, files, _fixed_part(source.path), passed_over, knobs)
    if path.is_dir() and (files := _records_below(path)):
        return _records_folder(source, files, knobs)
    return reader_for(source.path, knobs).units(source.path, source.name, block_bytes)


def _matches(pattern: str) -> tuple[list[str], Counter[str]]:
    """The files that a glob matches, in order.

    Raises:
        InvalidInput: none.
    """
    # Path.glob takes no absolute pattern.
    found = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    files = [path for path in found if not Path(path).is_dir()]
    if not files:
        folders = f"; {len(found)} folders do" if found else ""
        raise InvalidInput(f"no file matches `{pattern}`{folders}", "check the pattern")
    folders_matched = 0 if "**" in pattern else len(found) - len(files)
    return files, Counter({"folder that a glob matched": folders_matched})


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
        merged += units_of(spans, block_bytes if whole else 0, name, reader, root)
    counted = tuple(sorted((reason, n) for reason, n in passed_over.items() if n))
    return [replace(merged[0], passed_over=counted), *merged[1:]]


def _records_below(root: Path) -> list[str]:
    """The files of records under `root`, when it holds no texts beside a readme; else none.

    A plain `.json` is no evidence: every second source tree holds some.
    """
    kinds = [kind() for name, kind in readers().items() if name in RECORD_READERS]
    files = [path for path in walk(root) if path.is_file()] if not is_saved_dataset(root) else []
    records = [
        str(path)
        for path in files
        if path.suffix.lower() != ".json" and any(kind.claims(str(path)) for kind in kinds)
    ]
    texts = [p for p in files if is_text_name(p) and p.stem.lower() not in BESIDE_RECORDS]
    return records if records and not texts else []


def _records_folder(source: Source, files: list[str], knobs: dict[str, Any]) -> list[Unit]:
    """The units of a folder that is its files of records.

    Raises:
        InvalidInput: a link among them leads out of the folder or nowhere.
    """
    root = Path(source.path)
    for path in files:
        if Path(path).is_symlink() and (reason := link_defect(Path(path), root)):
            raise InvalidInput(f"{path}: {reason}", "name what it leads to as a source")
    others = Counter(
        path.suffix.lower() or "no suffix" for path in walk(root) if str(path) not in set(files)
    )
    passed_over = Counter({f"not a file of records: {kind}": n for kind, n in others.items()})
    return _units_of_files(source.name, files, source.path, passed_over, knobs)


# ── did a file change ────────────────────────────────────────────────────────────────────────


def raw_digest(unit: Unit) -> str:
    """sha256 over the bytes of the unit's spans, hex: its identity for a later run. 1.5 GB/s.

    Raises:
        InvalidInput: a file is missing or unreadable.
    """
    hasher = hashlib.sha256()
    for span in unit.files:
        hasher.update(f"{unit.relative(span.path)}\0{span.start}\0{span.end}\0".encode())
        try:
            if Path(span.path).is_file():
                _update(hasher, span)
        except OSError as error:
            raise InvalidInput(f"cannot read {span.path}: {error.strerror or error}") from error
    return hasher.hexdigest()


def _update(hasher: Any, span: FileSpan) -> None:
    with open(span.path, "rb", buffering=0) as handle:
        handle.seek(span.start)
        left = span.end - span.start
        while left > 0 and (data := handle.read(min(left, CHUNK))):
            hasher.update(data)
            left -= len(data)


@contextlib.contextmanager
def unchanged(units: Iterable[Unit]) -> Iterator[None]:
    """Read `units` inside the block.

    Raises:
        GiraffeError: a file has another size than when it was listed, or was written to meanwhile.
    """
    spans = [span for unit in units for span in unit.files]
    before = {span.path: _state(span.path) for span in spans}
    yield
    for span in spans:
        now = _state(span.path)
        if now != before[span.path] or (now is not None and now[0] != span.size):
            raise GiraffeError(f"{span.path} changed while it was read", "run the command again")


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of the last change; None for what is no file (a link that leads nowhere)."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None
