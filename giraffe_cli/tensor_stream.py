"""safetensors one tensor at a time: read, change, write, digest, without holding a shard.

A file is eight bytes (length of the header, little endian), a JSON header
`{name: {"dtype", "shape", "data_offsets"}}`, then the tensors' bytes without gaps. Reading and
writing in the order of the offsets keeps one tensor in memory:

    for tensor, data in read_tensors(path): ...        # tensor.name, tensor.dtype == "BF16"
    write_shard(out, read_layout(path), ((t, change(t, data)) for t, data in read_tensors(path)))
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rundir import atomic_open, read_json
from giraffe_cli.weights import STORED_TABLE, weight_files

COMPARED_ROWS = 4096
"""Of embeddings 4,096 wide 64 MB in float32."""


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a header."""

    name: str
    dtype: str
    """As safetensors spells it: `F32`, `BF16`, `F16`."""
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class Layout:
    """A file's header: its free-form strings, its tensors in the order of their bytes."""

    metadata: dict[str, str]
    tensors: tuple[StoredTensor, ...]
    data_start: int
    """Where the first tensor's bytes begin in the file."""


def read_layout(path: Path) -> Layout:
    """The header of one file, after safetensors itself found the file whole.

    Raises:
        InvalidInput: missing, truncated or not safetensors.
    """
    try:
        with safe_open(path, framework="pt"):
            pass
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            entries: dict[str, Any] = json.loads(handle.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} is not a whole safetensors file: {error}", "download the checkpoint again"
        ) from error
    metadata = entries.pop("__metadata__", {})
    ordered = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    tensors = tuple(
        StoredTensor(name, entry["dtype"], tuple(entry["shape"]), end - begin)
        for name, entry in ordered
        for begin, end in [entry["data_offsets"]]
    )
    return Layout(metadata, tensors, 8 + length)


def without_tables(layout: Layout) -> Layout:
    """`layout` without the rotary tables that conversions of before 2024 store: transformers reads
    none, and of another table they would tell the old one."""
    kept = tuple(entry for entry in layout.tensors if not entry.name.endswith(STORED_TABLE))
    return replace(layout, tensors=kept)


def write_index(source: Path, out: Path, names: Collection[str], total_bytes: int) -> None:
    """The index `source` as `out`: byte for byte, where the shards hold all that it names; else of
    those `names` alone, and their bytes.

    Raises:
        GiraffeError: `out` cannot be written.
    """
    index = read_json(source)
    if {*index["weight_map"]} == {*names}:
        data = source.read_bytes()
    else:
        kept = {name: file for name, file in index["weight_map"].items() if name in names}
        metadata = {**index.get("metadata", {}), "total_size": total_bytes}
        data = json.dumps({**index, "metadata": metadata, "weight_map": kept}, indent=2).encode()
    with atomic_open(out) as handle:
        handle.write(data)


@dataclass(frozen=True)
class TensorInFile:
    """One tensor of a file, read in part or whole when it is needed."""

    path: Path
    entry: StoredTensor
    begin: int
    """Where its bytes begin in the file."""

    def read_rows(self, start: int, stop: int) -> bytearray:
        """The bytes of rows `start` to `stop` of the first axis."""
        row = self.entry.num_bytes // self.entry.shape[0]
        data = bytearray((stop - start) * row)
        with open(self.path, "rb") as handle:
            handle.seek(self.begin + start * row)
            handle.readinto(data)
        return data

    def equals(self, other: TensorInFile) -> bool:
        """Whether both hold the same numbers of one type, `COMPARED_ROWS` rows at a time."""
        if (self.entry.dtype, self.entry.shape) != (other.entry.dtype, other.entry.shape):
            return False
        count = self.entry.shape[0]
        spans = ((n, min(n + COMPARED_ROWS, count)) for n in range(0, count, COMPARED_ROWS))
        return all(self.read_rows(*span) == other.read_rows(*span) for span in spans)


def tensors_in_file(path: Path) -> dict[str, TensorInFile]:
    """Every tensor of one file by name; only the header is read.

    Raises:
        InvalidInput: missing, truncated or not safetensors.
    """
    layout, found = read_layout(path), {}
    begin = layout.data_start
    for entry in layout.tensors:
        found[entry.name] = TensorInFile(path, entry, begin)
        begin += entry.num_bytes
    return found


def read_tensors(path: Path) -> Iterator[tuple[StoredTensor, bytearray]]:
    """Each tensor with its bytes, in file order; one tensor in memory.

    Raises:
        InvalidInput: missing, truncated or not safetensors.
    """
    layout = read_layout(path)
    with open(path, "rb") as handle:
        handle.seek(layout.data_start)
        for tensor in layout.tensors:
            data = bytearray(tensor.num_bytes)
            handle.readinto(data)
            yield tensor, data


def header_bytes(layout: Layout) -> bytes:
    """Length and JSON as they stand in the file, padded with spaces to a multiple of eight.

    `{"format": "pt"}` is added where it lacks: transformers 4 refuses files without it.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **layout.metadata}}
    begin = 0
    for tensor in layout.tensors:
        end = begin + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_shard(
    final: Path,
    layout: Layout,
    payloads: Iterable[tuple[StoredTensor, bytes | bytearray | memoryview]],
) -> dict[str, str]:
    """Write a file with the names, types and shapes of `layout`; `{name: sha256 of the bytes}`.

    Raises:
        GiraffeError: a payload has another size than its tensor, or the disk is full.
    """
    digests: dict[str, str] = {}
    with atomic_open(final) as handle:
        handle.write(header_bytes(layout))
        for tensor, data in payloads:
            if len(data) != tensor.num_bytes:
                raise GiraffeError(f"{tensor.name}: {len(data)} bytes for {tensor.num_bytes}")
            handle.write(data)
            digests[tensor.name] = hashlib.sha256(data).hexdigest()
            del data  # before the next one is made
    return digests


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor the weight files of a checkpoint hold, by name; headers only.

    Raises:
        InvalidInput: no safetensors, a missing shard or a damaged file.
    """
    return {
        tensor.name: tensor for path in weight_files(folder) for tensor in read_layout(path).tensors
    }


def tensor_digests(folder: Path) -> dict[str, str]:
    """sha256 of every tensor's bytes in a checkpoint; one tensor in memory.

    Raises:
        InvalidInput: no safetensors, a missing shard or a damaged file.
    """
    return {
        tensor.name: hashlib.sha256(data).hexdigest()
        for path in weight_files(folder)
        for tensor, data in read_tensors(path)
    }
