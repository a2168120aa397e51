"""A written GGUF read back: every tensor, field and pair held against the checkpoint.

The tensors' names come from gguf-py's own table of architectures, the order of rows from counting,
the rotary table from the module that stock transformers builds for the directory, so that a mistake
of the writer is not repeated by its proof.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from giraffe_cli.export.gguf_fields import ATTENTION_FACTOR
from giraffe_cli.export.gguf_tensors import Q8_BLOCK, ROPE_FREQS, TORCH_DTYPES, Planned
from giraffe_cli.export.source import Source
from giraffe_cli.rope.readings import TOLERANCE
from giraffe_cli.verify_files import Check, check, listed
from giraffe_cli.weights import expected_shapes

_CHUNK = 1 << 22
"""Bytes of the file that are compared at once."""
FLOAT32_ROUNDING = 2e-7
"""Relative: freq_base and a divisor are rounded once each, 6e-8."""


def prove(
    path: Path,
    source: Source,
    fields: Mapping[str, Any],
    weights: Iterable[tuple[Planned, torch.Tensor]],
) -> dict[str, Check]:
    """`{check: {"ok", "found", "expected"}}`.

    Raises:
        ValueError, KeyError, IndexError: the file is no GGUF that can be parsed.
    """
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = {name: field.contents() for name, field in reader.fields.items()}
    return {
        "tensors": _check_shapes(tensors, source),
        "fields": _check_fields(stored, fields),
        "rope_freqs": _check_table(tensors, stored, source),
        "attn_factor": _check_attention_factor(stored, source),
        "stock_table": _check_stock_table(tensors, stored, source),
        "weights": _check_weights(path, tensors, weights),
    }


def prove_header(path: Path, source: Source) -> dict[str, Check]:
    """The part of the proof that needs no weight: names and shapes, table, attention factor, and
    the window that the file names; raises as `prove` does."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    stored = {name: field.contents() for name, field in reader.fields.items()}
    window = stored.get("llama.context_length")
    return {
        "tensors": _check_shapes(tensors, source),
        "rope_freqs": _check_table(tensors, stored, source),
        "attn_factor": _check_attention_factor(stored, source),
        "context_length": check(window == source.context_length, window, source.context_length),
    }


def _check_shapes(tensors: Mapping[str, Any], source: Source) -> Check:
    """Complete, in shape, and nothing else."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, source.checkpoint.num_layers)
    expected = {
        f"{names.get_name(name.removesuffix('.weight'))}.weight": shape
        for name, shape in expected_shapes(source.shape).items()
    }
    found = {
        name: tuple(int(n) for n in reversed(tensor.shape))
        for name, tensor in tensors.items()
        if name != ROPE_FREQS
    }
    wrong = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
    return check(not wrong, listed(wrong) or f"{len(found)} tensors", f"{len(expected)} tensors")


def _check_fields(stored: Mapping[str, Any], fields: Mapping[str, Any]) -> Check:
    wrong = sorted(name for name, value in fields.items() if not _same(stored.get(name), value))
    scaling = [name for name in stored if "rope.scaling" in name and name != ATTENTION_FACTOR]
    wrong += sorted(scaling)
    return check(not wrong, listed(wrong) or f"{len(fields)} fields", f"{len(fields)} fields")


def _same(stored: Any, value: Any) -> bool:
    """Floats were rounded to float32."""
    if isinstance(value, float):
        return stored is not None and float(np.float32(value)) == stored
    if isinstance(value, list) and value and isinstance(value[0], float):
        return stored is not None and np.array_equal(
            np.array(value, dtype=np.float32), np.array(stored, dtype=np.float32)
        )
    return bool(stored == value)


def _table(tensors: Mapping[str, Any], stored: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """`[head_dim/2]` what llama.cpp computes from the file: freq_base^(-2i/d) / rope_freqs."""
    head_dim = stored["llama.rope.dimension_count"]
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    table = stored["llama.rope.freq_base"] ** -exponents
    if ROPE_FREQS in tensors:
        table = table / tensors[ROPE_FREQS].data.astype(np.float64)
    return np.asarray(table, dtype=np.float64)


def _deviation(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """The largest relative difference."""
    a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.max(np.abs(a - b) / b)) if a.shape == b.shape else math.inf


def _check_table(tensors: Mapping[str, Any], stored: Mapping[str, Any], source: Source) -> Check:
    worst = _deviation(_table(tensors, stored), source.inv_freq)
    return check(worst <= FLOAT32_ROUNDING, f"{worst:.1e} off", f"<= {FLOAT32_ROUNDING:.0e}")


def _check_attention_factor(stored: Mapping[str, Any], source: Source) -> Check:
    found = stored.get(ATTENTION_FACTOR, 1.0)
    return check(found == np.float32(source.attention_factor), found, source.attention_factor)


def _check_stock_table(
    tensors: Mapping[str, Any], stored: Mapping[str, Any], source: Source
) -> Check:
    """The file against the rotary module that transformers builds from the directory."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig.from_pretrained(source.checkpoint.path, local_files_only=True)
    rotary = LlamaRotaryEmbedding(config)
    worst = max(
        _deviation(_table(tensors, stored), rotary.inv_freq.double().numpy()),
        _deviation([stored.get(ATTENTION_FACTOR, 1.0)], [rotary.attention_scaling]),
    )
    return check(worst <= TOLERANCE, f"{worst:.1e} off", f"<= {TOLERANCE:.0e}")


def _check_weights(
    path: Path, tensors: Mapping[str, Any], weights: Iterable[tuple[Planned, torch.Tensor]]
) -> Check:
    """Bit-equal to the source rounded once; q8_0 within half a quantisation step."""
    wrong, count = [], 0
    with open(path, "rb") as handle:
        for planned, weight in weights:
            count += 1
            stored = tensors.get(planned.name)
            if stored is None or not _weight_holds(handle, stored, planned, weight):
                wrong.append(planned.name)
    expected = f"{count} as in the source"
    return check(not wrong, f"differ: {listed(wrong)}" if wrong else expected, expected)


def _weight_holds(handle: IO[bytes], stored: Any, planned: Planned, weight: torch.Tensor) -> bool:
    """Read in pieces: the reader's own mapping would keep the whole file in memory."""
    if stored.tensor_type.name != planned.dtype.upper() or stored.n_bytes != planned.num_bytes:
        return False
    order = torch.from_numpy(_source_rows(len(weight), planned.head_dim))
    width = planned.num_bytes // len(weight)
    same = _within_step if planned.dtype == "q8_0" else _bit_equal
    handle.seek(stored.data_offset)
    for rows in torch.split(order, max(1, _CHUNK // width)):
        raw = np.frombuffer(handle.read(width * len(rows)), dtype=np.uint8)
        if not same(raw, weight[rows], planned.dtype):
            return False
    return True


def _source_rows(rows: int, head_dim: int | None) -> npt.NDArray[np.int64]:
    """`[rows]` which row of the checkpoint stands in each row of the file.

    ggml turns rows 2i and 2i + 1 of a head together, Hugging Face rows i and i + d/2.
    """
    row = np.arange(rows, dtype=np.int64)
    if head_dim is None:
        return row
    within = row % head_dim
    return np.asarray(row - within + within % 2 * (head_dim // 2) + within // 2, dtype=np.int64)


def _bit_equal(raw: npt.NDArray[np.uint8], weight: torch.Tensor, dtype: str) -> bool:
    rounded = weight.to(TORCH_DTYPES[dtype]).contiguous().reshape(-1)
    return np.array_equal(raw, rounded.view(torch.uint8).numpy())


def _within_step(raw: npt.NDArray[np.uint8], weight: torch.Tensor, dtype: str) -> bool:
    """Blocks of (float16 scale d, 32 signed bytes): each value within 0.57 d of the source.

    Half a step, and up to 127 steps of a scale that float16 rounded by 2^-11: 0.5 + 0.062; scales
    below 6e-5 are subnormal, off by up to 2^-25.
    """
    blocks = raw.reshape(-1, Q8_BLOCK + 2)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    values = scale * blocks[:, 2:].view(np.int8)
    error = np.abs(values - weight.to(torch.float32).numpy().reshape(-1, Q8_BLOCK))
    return bool(np.all(error <= 0.57 * scale + 128 * 2.0**-25))
