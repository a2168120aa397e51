"""Packed rows on disk: parquet shards that any trainer reads, each row addressable in O(1).

    packed/rows-00000.parquet   a row is a window; `rows.py` says what it holds
    packed/stats.json           what went in and what came out
    packed/held_out.jsonl.gz    the documents kept out of training: id, text, source
    packed/removed.jsonl        the documents left out as duplicates or contaminated, if any were
    packed/manifest.json        written last: inputs by digest, each file by size and digest
    packed/report.html          a page about all this, when it was asked for
    packed/.work/               tokens of a packing that has not finished

Reading a row decodes its row group, about 256 k tokens (1 MB), and keeps the last one decoded.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.rows import Int32, Layout, shard_name
from giraffe_cli.corpus.tokens import Choice
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rundir import (
    LOCK,
    MANIFEST,
    WORK,
    atomic_open,
    digest_value,
    make_folder,
    read_json,
    stage_holds,
    sync_folder,
)

KIND = "packed"
STATS = "stats.json"
HELD_OUT = "held_out.jsonl.gz"
REMOVED = "removed.jsonl"
PAGE = "report.html"


class Row(NamedTuple):
    """One window, its documents end to end."""

    input_ids: Int32
    """[n] token ids, n at most the window."""
    seq_lengths: Int32
    """[pieces] tokens of each piece; the sum is n."""
    doc_ids: list[str]
    """[pieces] the document of each piece."""


class PackedRows:
    """A packed folder, opened: `rows.row(i)` for any i in any order."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.window: int = manifest["window"]
        self.stats: dict[str, Any] = read_json(folder / STATS)
        self.digest = digest_value(manifest)
        """Changes with any input and any byte."""
        self.tokenizer_digest: str = manifest["inputs"]["tokenizer"]
        self.bos: Choice = manifest["inputs"]["config"]["bos"]
        self.eos: Choice = manifest["inputs"]["config"]["eos"]
        """Whether documents were packed with these tokens."""
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

    @functools.cached_property
    def squares(self) -> npt.NDArray[np.float64]:
        """[rows] the sum of s² over a row's pieces of s tokens: what its attention costs, but for a
        factor. Reads their column alone, once."""
        found = [np.empty(0)]
        for column in columns(self.folder, "seq_lengths"):
            begins = column.offsets.to_numpy()[:-1] - column.offsets[0].as_py()
            lengths = column.flatten().to_numpy().astype(np.float64)
            found.append(np.add.reduceat(lengths**2, begins))
        return np.concatenate(found)

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


def columns(folder: Path, name: str) -> Iterator[Any]:
    """One column of a packed folder's rows, [rows] lists, a row group at a time."""
    for shard in sorted(folder.glob("rows-*.parquet")):
        file = pq.ParquetFile(shard)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=[name])[name].combine_chunks()


def document_ids(folder: Path) -> set[str]:
    """The documents that a packed folder trains on; reads their column alone."""
    found = set[str]()
    for column in columns(folder, "doc_ids"):
        found.update(column.flatten().unique().to_pylist())
    return found


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
        InvalidInput: `folder` or the parent that would hold it is no writable directory, or it
            holds other files.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise InvalidInput(f"{place} is not a directory", "choose another --out")
    if not os.access(place, os.W_OK):
        raise InvalidInput(f"{place} is not writable", "choose another --out")
    own = (STATS, HELD_OUT, REMOVED, PAGE, WORK, MANIFEST, LOCK)
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        name = path.name.removesuffix(".partial")
        if name not in own and not path.match("rows-*.parquet*"):
            raise InvalidInput(
                f"{folder} holds files that packing did not write, such as {path.name}",
                "choose another --out, or an empty folder",
            )


def clear_rows(folder: Path) -> Path:
    """An empty folder for rows: what an earlier or killed packing wrote goes, its tokens stay.

    The manifest goes first, so that a folder that is half cleared counts for nothing.

    Raises:
        GiraffeError: the disk is full, or a file cannot be removed.
    """
    make_folder(folder)
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        sync_folder(folder)
        for path in folder.iterdir():
            if path.name not in (WORK, LOCK):
                path.unlink()
    except OSError as error:
        raise GiraffeError(
            f"cannot write {folder}: {error.strerror or error}",
            "free disk space or choose another --out",
        ) from error
    return folder


def clear_work(folder: Path) -> None:
    """Remove the tokens of a packing that finished."""
    shutil.rmtree(folder / WORK, ignore_errors=True)


@contextlib.contextmanager
def held_out_writer(folder: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that appends a document, as one line of JSON, to `held_out.jsonl.gz`.

    Level 1: 3 MB of text take 0.05 CPU-seconds, at level 9 a third.
    """
    with (
        atomic_open(folder / HELD_OUT) as handle,
        # No name and no time inside, so that equal documents make equal bytes.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=handle, mtime=0) as stream,
    ):

        def write(line: bytes) -> None:
            stream.write(line)

        yield write


def held_out(folder: Path) -> list[Document]:
    """As `each_held_out`, all of them."""
    return list(each_held_out(folder))


def each_held_out(folder: Path) -> Iterator[Document]:
    """The documents that packing kept out of training, in the order of the corpus.

    Raises:
        InvalidInput: the file is missing or damaged.
    """
    path = folder / HELD_OUT
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield Document(**json.loads(line))
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist", "run giraffe pack-data again") from error
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is damaged: {error}", "run giraffe pack-data again") from error
