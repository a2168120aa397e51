"""Parquet files: one document a row, the text in one column; other columns are not decoded.

Units are runs of row groups. A row group belongs to the span of bytes in which its first byte lies.
Memory: the pages of one row group's text column, a few MB of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.base import AbstractReader, BadRecords, Document, file_size, missing
from giraffe_cli.corpus.readers._records import Defect
from giraffe_cli.corpus.readers._tables import columns_to_read, documents_of
from giraffe_cli.corpus.unit import BLOCK_BYTES, FileSpan, Unit, units_of
from giraffe_cli.errors import InvalidInput, first_line

BATCH_BYTES = 4 << 20
"""Decoded at a time, by the average row."""


@dataclass(frozen=True)
class Parquet(AbstractReader):
    """`.parquet` files."""

    text_field: str = "text"
    """The column that holds the text."""

    holds_records = True
    summary = "a .parquet file with a text column"

    def claims(self, source: str) -> bool:
        return source.lower().endswith(".parquet") and not Path(source).is_dir()

    def units(self, source: str, name: str, block_bytes: int = BLOCK_BYTES) -> list[Unit]:
        size = file_size(source)
        try:
            with _opened(source) as file:
                starts = _cuts(file.metadata, block_bytes)
        except InvalidInput:
            starts = [0]  # told where it is read, by `on_bad`
        spans = [
            FileSpan(source, start, end, size)
            for start, end in zip(starts, [*starts[1:], size], strict=True)
        ]
        # A block size of 0 keeps every span a unit of its own.
        return units_of(spans, 0, name, "parquet", str(Path(source).parent))

    def documents(self, unit: Unit, bad: BadRecords) -> Iterator[Document]:
        bad.pass_over(unit)
        for span in unit.files:
            try:
                file = _opened(span.path)
            except InvalidInput as error:
                bad.report(span.path, "no parquet file", f" ({first_line(error)})")
                continue
            with file:
                yield from self._of_span(file, unit, span, bad)

    def example(self, folder: Path) -> str:
        import pyarrow
        import pyarrow.parquet

        path = folder / "example.parquet"
        columns = {"id": ["one", "two"], self.text_field: ["a text", "another"]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1)
        return str(path)

    def _of_span(
        self, file: Any, unit: Unit, span: FileSpan, bad: BadRecords
    ) -> Iterator[Document]:
        try:
            columns = columns_to_read(file.schema_arrow, self.text_field)
        except Defect as defect:
            bad.report(span.path, defect.reason, defect.detail)
            return
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        first_bytes = [_first_byte(group) for group in groups]
        chosen = [i for i, byte in enumerate(first_bytes) if span.start <= byte < span.end]
        before = sum(
            group.num_rows
            for group, byte in zip(groups, first_bytes, strict=True)
            if byte < span.start
        )
        for index in chosen:
            yield from self._of_group(file, index, columns, unit, span, before, bad)
            before += groups[index].num_rows

    def _of_group(
        self,
        file: Any,
        index: int,
        columns: list[str],
        unit: Unit,
        span: FileSpan,
        before: int,
        bad: BadRecords,
    ) -> Iterator[Document]:
        """The rows of one row group; where its pages are damaged, those before."""
        import pyarrow

        group = file.metadata.row_group(index)
        try:
            batches = file.iter_batches(
                batch_size=max(1, group.num_rows * BATCH_BYTES // max(group.total_byte_size, 1)),
                row_groups=[index],
                columns=columns,
                use_threads=False,
            )
            yield from documents_of(
                batches, unit, span.path, before, self.text_field, self.max_doc_bytes, bad
            )
        except (pyarrow.ArrowException, OSError) as error:
            rows = f"rows {before + 1:,} to {before + group.num_rows:,}"
            bad.report(f"{span.path}: {rows}", "damaged rows of parquet", f" ({first_line(error)})")


def _opened(path: str) -> Any:
    """An open `ParquetFile`.

    Raises:
        InvalidInput: missing, or no parquet.
    """
    import pyarrow  # here: reading JSON and text alone needs none of it
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    except FileNotFoundError as error:
        raise missing(path) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidInput(f"{path} is no parquet file: {first_line(error)}") from error


def _cuts(metadata: Any, block_bytes: int) -> list[int]:
    """Where spans begin: at 0, and before a row group with which a span would be too large."""
    cuts, size = [0], 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if not group.num_rows:  # its first byte may be said to be 0
            continue
        if size and size + group.total_byte_size > block_bytes:
            cuts.append(_first_byte(group))
            size = 0
        size += group.total_byte_size
    return cuts


def _first_byte(group: Any) -> int:
    """Where the pages of a row group begin in the file."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    pages = [chunk.data_page_offset for chunk in chunks]
    dictionaries = [chunk.dictionary_page_offset for chunk in chunks]
    return min([*pages, *(offset for offset in dictionaries if offset)], default=0)
