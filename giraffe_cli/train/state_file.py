"""Tensors to one safetensors file and back, one at a time: a state is never held twice in memory.

    write_tensors(path, {"parameter/a": p, "exp_avg/a": m, "state1/a": uint8 …})
    for name, tensor in read_tensors(path): …          # on the CPU, one at a time

Wider types come first, as safetensors itself orders them, so that every tensor is aligned; then
names, so that equal states make equal bytes. A tensor that is spread over processes is written
whole, by one of them, to which the others `give_tensors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from giraffe_cli import tensor_stream
from giraffe_cli.model.pieces import Spread, give, whole_bytes
from giraffe_cli.rundir import atomic_open
from giraffe_cli.tensor_stream import Layout, StoredTensor, header_bytes

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
Range = tuple[int, int]
_DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Spread]) -> None:
    """Write `tensors`, of any device, as one file, atomically; one of them on the CPU at a time.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    ordered = _ordered(tensors)
    entries = tuple(
        StoredTensor(name, DTYPES[t.dtype], tuple(t.shape), math.prod(t.shape) * t.dtype.itemsize)
        for name, t in ordered
    )
    with atomic_open(path) as handle:
        handle.write(header_bytes(Layout({}, entries, 0)))
        for _, tensor in ordered:
            handle.write(whole_bytes(tensor))


def give_tensors(tensors: Mapping[str, Tensor | Spread]) -> None:
    """Take part in another process's `write_tensors` of the same names."""
    for _, tensor in _ordered(tensors):
        give(tensor)


def _ordered(tensors: Mapping[str, Tensor | Spread]) -> list[tuple[str, Tensor | Spread]]:
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def read_tensors(
    path: Path, part_of: Callable[[str, tuple[int, ...]], Range | None] = lambda name, shape: None
) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its name, on the CPU, in a memory of its own.

    `part_of(name, shape)` are the numbers that are wanted of it, first and one behind the last:
    those alone are read, and come flat; None for all.

    Read, not mapped: mapped pages of a large state would count as this process's memory.
    """
    layout = tensor_stream.read_layout(path)
    begin = layout.data_start
    with open(path, "rb") as handle:
        for entry in layout.tensors:
            dtype, part = _DTYPES_BY_NAME[entry.dtype], part_of(entry.name, entry.shape)
            first, last = part or (0, math.prod(entry.shape))
            data = bytearray((last - first) * dtype.itemsize)
            handle.seek(begin + first * dtype.itemsize)
            handle.readinto(data)
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            yield entry.name, flat if part else flat.reshape(entry.shape)
            begin += entry.num_bytes
