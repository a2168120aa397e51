"""Packed rows on disk: parquet shards that any trainer reads, each row addressable in O(1).

    packed/rows-00000.parquet   a row is a window: input_ids list<int32> (no padding),
                                seq_lengths list<int32> (its pieces; they sum to the row's length),
                                source and doc_ids list<string> (one entry a piece)
    packed/stats.json           what went in and what came out
    packed/held_out.jsonl.gz    the documents kept out of training: id, text, source
    packed/manifest.json        written last: inputs by digest, each file by size and digest

Invariant: equal rows make equal bytes; nothing holds a time. Reading a row decodes its row group,
about 256 k tokens (1 MB), and keeps the last one decoded.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.rundir import MANIFEST, atomic_open, digest_value, read_json, stage_holds

KIND = "packed"
STATS = "stats.json"
HELD_OUT = "held_out.jsonl.gz"
TOKENS_IN_ROW_GROUP = 1 << 18
TOKENS_IN_SHARD = 1 << 26

Int32 = npt.NDArray[np.int32]


class Row(NamedTuple):
    """One window, its documents end to end."""

    input_ids: Int32
    """[n] token ids, n at most the window."""
    seq_lengths: Int32
    """[pieces] tokens of each piece; the sum is n."""
    doc_ids: list[str]
    """[pieces] the document of each piece."""


class SourcedRow(NamedTuple):
    """A row as it is written: with the source of each piece, as the user named it."""

    row: Row
    sources: list[str]


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


def shard_name(number: int) -> str:
    """`rows-00000.parquet`."""
    return f"rows-{number:05d}.parquet"


def write_rows(folder: Path, rows: Iterable[SourcedRow], layout: Layout) -> None:
    """Write the shards, each whole or absent.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    source, shard = iter(rows), 0
    remaining = layout.rows
    while remaining > 0:
        in_shard = min(remaining, layout.rows_per_shard)
        with (
            atomic_open(folder / shard_name(shard)) as handle,
            pq.ParquetWriter(
                handle, _schema(), compression="zstd", use_dictionary=["source", "doc_ids"]
            ) as writer,
        ):
            for group in _groups(islice(source, in_shard), layout.rows_per_group):
                writer.write_table(_table(group), row_group_size=layout.rows_per_group)
        remaining -= in_shard
        shard += 1


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


def _groups(rows: Iterator[SourcedRow], size: int) -> Iterator[list[SourcedRow]]:
    while group := list(islice(rows, size)):
        yield group


def _table(group: list[SourcedRow]) -> Any:
    return pa.Table.from_arrays(
        [
            _integers([entry.row.input_ids for entry in group]),
            _integers([entry.row.seq_lengths for entry in group]),
            pa.array([entry.sources for entry in group], pa.list_(pa.string())),
            pa.array([entry.row.doc_ids for entry in group], pa.list_(pa.string())),
        ],
        schema=_schema(),
    )


def _integers(lists: list[Int32]) -> Any:
    """list<int32> straight from the arrays, no Python integers between."""
    offsets = np.concatenate([[0], np.cumsum([len(entry) for entry in lists])]).astype(np.int32)
    values = np.concatenate(lists).astype(np.int32, copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class PackedRows:
    """A packed folder, opened: `rows.row(i)` for any i in any order."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.window: int = manifest["window"]
        self.stats: dict[str, Any] = read_json(folder / STATS)
        self.digest = digest_value(manifest)
        """Changes with any input and any byte."""
        self.tokenizer_digest: str = manifest["inputs"]["tokenizer"]
        self.layout = Layout(**manifest["layout"])
        self._files: dict[int, Any] = {}
        self._decoded: tuple[tuple[int, int], Any] | None = None

    def __len__(self) -> int:
        return self.layout.rows

    def row(self, index: int) -> Row:
        """Row `index`, 0 ≤ index < len.

        Raises:
            IndexError: there is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard, in_shard = divmod(index, self.layout.rows_per_shard)
        group, at = divmod(in_shard, self.layout.rows_per_group)
        table = self._group(shard, group)
        return Row(
            table["input_ids"][at].values.to_numpy().copy(),
            table["seq_lengths"][at].values.to_numpy().copy(),
            table["doc_ids"][at].as_py(),
        )

    def _group(self, shard: int, group: int) -> Any:
        if self._decoded is None or self._decoded[0] != (shard, group):
            if shard not in self._files:
                path = self.folder / shard_name(shard)
                self._files[shard] = pq.ParquetFile(path, memory_map=True)
            self._decoded = ((shard, group), self._files[shard].read_row_group(group))
        return self._decoded[1]


def open_packed(folder: Path) -> PackedRows:
    """Open what `pack-data` wrote, after checking every file against the manifest.

    Raises:
        InvalidInput: no packed folder, one whose packing did not finish, or an altered file.
    """
    again = "run the giraffe pack-data that wrote it again"
    if not (folder / MANIFEST).exists():
        raise InvalidInput(f"{folder} is no packed directory: it has no {MANIFEST}", again)
    manifest = read_json(folder / MANIFEST)
    if not _is_manifest(manifest):
        raise InvalidInput(f"{folder / MANIFEST} is not that of packed data", again)
    if not stage_holds(folder, manifest["inputs"]):
        raise InvalidInput(f"{folder} was altered: a file differs from its {MANIFEST}", again)
    return PackedRows(folder, manifest)


def is_packed(path: Path) -> bool:
    """Whether `path` is a folder whose packing finished."""
    try:
        return _is_manifest(read_json(path / MANIFEST))
    except InvalidInput:
        return False


def _is_manifest(value: Any) -> bool:
    return isinstance(value, dict) and value.get("kind") == KIND


def check_replaceable(folder: Path) -> None:
    """Refuse early what cannot be written, or would clear what packing did not write.

    Raises:
        InvalidInput: `folder` or the parent that would hold it is no writable directory.
        UsageError: it holds other files.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InvalidInput(f"{place} is not a directory", "choose another --out")
    if not os.access(place, os.W_OK):
        raise InvalidInput(f"{place} is not writable", "choose another --out")
    own = (STATS, HELD_OUT, MANIFEST)
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        name = path.name.removesuffix(".partial")
        if name not in own and not path.match("rows-*.parquet*"):
            raise UsageError(
                f"{folder} holds files that packing did not write, such as {path.name}",
                "choose another --out, or an empty folder",
            )


@contextlib.contextmanager
def held_out_writer(folder: Path) -> Iterator[Callable[[Document], None]]:
    """A function that appends a document to `held_out.jsonl.gz`."""
    with (
        atomic_open(folder / HELD_OUT) as handle,
        # No name and no time inside, so that equal documents make equal bytes.
        gzip.GzipFile(filename="", fileobj=handle, mode="wb", mtime=0) as stream,
    ):

        def write(document: Document) -> None:
            stream.write(json.dumps(asdict(document), ensure_ascii=False).encode() + b"\n")

        yield write


def held_out(folder: Path) -> list[Document]:
    """The documents that packing kept out of training, in the order of the corpus.

    Raises:
        InvalidInput: the file is missing or damaged.
    """
    path = folder / HELD_OUT
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return [Document(**json.loads(line)) for line in lines]
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist", "run giraffe pack-data again") from error
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is damaged: {error}", "run giraffe pack-data again") from error
