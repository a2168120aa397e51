"""A GGUF file from fields, a table and streamed tensors; whole or absent under its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from giraffe_cli.errors import GiraffeError
from giraffe_cli.export.gguf_tensors import ROPE_FREQS, Planned, encode
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import FloatArray


def write_gguf(
    path: Path,
    fields: Mapping[str, Any],
    plan: Iterable[Planned],
    weights: Iterable[tuple[Planned, torch.Tensor]],
    divisors: FloatArray | None,
    reporter: Reporter,
) -> None:
    """Write `path`, in place and without fsync; `weights` come in the order of `plan`.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
        InvalidInput: a value that the chosen type cannot hold.
    """
    import gguf

    planned = list(plan)
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        _add_field(writer, name, value)
    if divisors is not None:
        kind = gguf.GGMLQuantizationType.F32
        writer.add_tensor_info(ROPE_FREQS, divisors.shape, np.dtype("f4"), 4 * len(divisors), kind)
    for tensor in planned:
        kind = gguf.GGMLQuantizationType[tensor.dtype.upper()]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype("f4"), tensor.num_bytes, raw_dtype=kind
        )
    total = sum(tensor.num_bytes for tensor in planned)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if divisors is not None:
            writer.write_tensor_data(divisors.astype(np.float32))
        with reporter.bar("writing", total / 1e6, "MB") as bar:
            for tensor, weight in weights:
                writer.write_tensor_data(encode(weight, tensor))
                bar.advance(tensor.num_bytes / 1e6)
    except OSError as error:
        raise GiraffeError(
            f"cannot write {path}: {error.strerror or error}",
            "free disk space or choose another --out",
        ) from error
    finally:
        writer.close()


def _add_field(writer: Any, name: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case list():
            writer.add_array(name, value)
