"""Stored tensors in another float type: what transformers makes of files that hold several.

A model is loaded in one type, so the tensors of another are rounded then, or widened.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from giraffe_cli.tensor_stream import Layout, StoredTensor, read_tensors
from giraffe_cli.weights import STORED_DTYPES, STORED_TABLE, weight_files

DTYPES: dict[str, torch.dtype] = {
    stored: getattr(torch, name) for stored, name in STORED_DTYPES.items()
}
STORED_NAMES = {name: stored for stored, name in STORED_DTYPES.items()}
"""safetensors' name by torch's: `{"bfloat16": "BF16", ...}`."""


def layout_in(layout: Layout, dtype: str) -> Layout:
    """`layout` with every tensor in `dtype`, by safetensors' name; rotary tables stay exact."""
    size = DTYPES[dtype].itemsize
    tensors = (
        entry
        if entry.name.endswith(STORED_TABLE)
        else replace(entry, dtype=dtype, num_bytes=math.prod(entry.shape) * size)
        for entry in layout.tensors
    )
    return replace(layout, tensors=tuple(tensors))


def bytes_in(tensor: StoredTensor, data: bytearray, dtype: str) -> bytearray:
    """The bytes of `tensor` in `dtype`, rounded to nearest; `data` itself where it is its own."""
    if tensor.dtype == dtype or not data:
        return data
    values = torch.frombuffer(data, dtype=DTYPES[tensor.dtype])
    found = bytearray(len(values) * DTYPES[dtype].itemsize)
    torch.frombuffer(found, dtype=DTYPES[dtype]).copy_(values)
    return found


def digests_in(folder: Path, dtypes: Mapping[str, str]) -> dict[str, str]:
    """sha256 of the bytes of those tensors of a checkpoint in the dtypes, by torch's names, that
    are given with them; one tensor in memory.

    Raises:
        InvalidInput: no safetensors, a missing shard or a damaged file.
    """
    return {
        tensor.name: hashlib.sha256(data).hexdigest()
        for path in weight_files(folder)
        for tensor, raw in read_tensors(path)
        if tensor.name in dtypes
        for data in [bytes_in(tensor, raw, STORED_NAMES[dtypes[tensor.name]])]
    }
