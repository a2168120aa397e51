"""What the user named → units and documents: sources in their order, none read twice.

    resolve(["books=data/*.jsonl.gz", "docs/"], config) → units of `books`, then units of `docs/`

A source is `PATH`, or `NAME=PATH` where a name is wanted that is not the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, make_reader, readers
from giraffe_cli.corpus.changes import unchanged
from giraffe_cli.corpus.source_names import check_distinct, parse_source
from giraffe_cli.corpus.source_units import units_of_source
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.errors import UsageError


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
    units = [unit for named in sources for unit in units_of_source(parse_source(named), knobs)]
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
