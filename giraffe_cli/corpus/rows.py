"""How rows lie in parquet: layout, schema and writer.

    rows-00000.parquet   input_ids list<int32> (no padding), seq_lengths list<int32> (the row's
                         pieces; they sum to its length), source and doc_ids list<string> (one
                         entry a piece)

Token ids are split by byte and compressed with zstd 1: of 8 M ids of a 49k vocabulary 11.6 MB in
0.06 CPU-seconds, where plain zstd takes 12.9 MB and 0.13, lz4 17.7 MB and 0.10, delta packing
17.1 MB and 0.07, nothing 32 MB and 0.05. Memory: one row group, about 256 k tokens.
Invariant: equal rows make equal bytes; nothing holds a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from giraffe_cli.rundir import atomic_open

TOKENS_IN_ROW_GROUP = 1 << 18
TOKENS_IN_SHARD = 1 << 26

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Layout:
    """How rows are spread over files; row r is in shard r // rows_per_shard."""

    rows: int
    rows_per_group: int
    rows_per_shard: int

    @staticmethod
    def of(rows: int, window: int) -> Layout:
        """Groups of about 256 k tokens, shards of about 64 M (256 MB before compression)."""
        group = max(1, TOKENS_IN_ROW_GROUP // window)
        return Layout(rows, group, group * max(1, TOKENS_IN_SHARD // (group * window)))

    def groups(self) -> Iterator[tuple[int, int]]:
        """First and last row (exclusive) of each row group; no group crosses a shard."""
        for shard in range(0, self.rows, self.rows_per_shard):
            end = min(self.rows, shard + self.rows_per_shard)
            for first in range(shard, end, self.rows_per_group):
                yield first, min(end, first + self.rows_per_group)

    @property
    def groups_per_shard(self) -> int:
        """Row groups in every shard but the last."""
        return -(-self.rows_per_shard // self.rows_per_group)


class RowGroup(NamedTuple):
    """Some windows, end to end."""

    input_ids: Int32
    """[tokens]"""
    row_lengths: Int32
    """[rows] tokens of each row."""
    seq_lengths: Int32
    """[pieces] tokens of each piece."""
    pieces: Int32
    """[rows] pieces of each row."""
    sources: Any
    """Arrow strings [pieces]: the source of each piece, as the user named it."""
    doc_ids: Any
    """Arrow strings [pieces]: the document of each piece."""


def shard_name(number: int) -> str:
    """`rows-00000.parquet`."""
    return f"rows-{number:05d}.parquet"


def write_rows(folder: Path, groups: Iterable[RowGroup], layout: Layout) -> None:
    """Write the shards, each whole or absent; `groups` are those of `layout`, in order.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    source = iter(groups)
    for shard in range(-(-layout.rows // layout.rows_per_shard)):
        with (
            atomic_open(folder / shard_name(shard)) as handle,
            pq.ParquetWriter(
                handle,
                _schema(),
                compression="zstd",
                compression_level=1,
                column_encoding={"input_ids.list.element": "BYTE_STREAM_SPLIT"},
                use_dictionary=["source.list.element", "doc_ids.list.element"],
                write_statistics=False,
            ) as writer,
        ):
            for group in islice(source, layout.groups_per_shard):
                writer.write_table(_table(group), row_group_size=layout.rows_per_group)


def _schema() -> Any:
    integers, strings = pa.list_(pa.int32()), pa.list_(pa.string())
    return pa.schema(
        [
            ("input_ids", integers),
            ("seq_lengths", integers),
            ("source", strings),
            ("doc_ids", strings),
        ]
    )


def _table(group: RowGroup) -> Any:
    of_rows, of_pieces = _offsets(group.row_lengths), _offsets(group.pieces)
    columns = [
        (of_rows, integers(group.input_ids)),
        (of_pieces, integers(group.seq_lengths)),
        (of_pieces, group.sources),
        (of_pieces, group.doc_ids),
    ]
    lists = [pa.ListArray.from_arrays(offsets, values) for offsets, values in columns]
    return pa.Table.from_arrays(lists, schema=_schema())


def _offsets(lengths: Int32) -> Any:
    return integers(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))


def integers(values: npt.NDArray[Any]) -> Any:
    """An Arrow array over the memory of `values`, int32 or int64.

    `pa.array` would import pandas, where it is installed: 0.17 CPU-seconds and 40 MB.
    """
    kind = pa.int32() if values.dtype == np.int32 else pa.int64()
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


@dataclass(frozen=True)
class Strings:
    """Many short texts end to end: an id of 10 bytes costs 18, where a Python list takes 70."""

    data: npt.NDArray[np.uint8]
    """UTF-8."""
    offsets: npt.NDArray[np.int64]
    """[texts + 1]"""

    @staticmethod
    def of(values: Sequence[str]) -> Strings:
        """From Python strings."""
        encoded = [value.encode() for value in values]
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return Strings.end_to_end(data, np.array([len(entry) for entry in encoded], np.int64))

    @staticmethod
    def end_to_end(data: npt.NDArray[np.uint8], lengths: npt.NDArray[np.int64]) -> Strings:
        """From bytes and the lengths [texts] of what lies in them."""
        return Strings(data, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        return self._bytes(number).decode()

    def take(self, numbers: npt.NDArray[Any]) -> Any:
        """The Arrow string array of the texts `numbers`; Arrow's own take imports its compute
        kernels, 0.07 CPU-seconds."""
        parts = [self._bytes(int(number)) for number in numbers]
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(parts))]
        return pa.Array.from_buffers(pa.string(), len(parts), buffers)

    def _bytes(self, number: int) -> bytes:
        return self.data[self.offsets[number] : self.offsets[number + 1]].tobytes()
