"""Weights as llama.cpp stores them: its names, its row order, its types; one tensor in memory.

ggml rotates neighbouring rows (2i, 2i+1) of a head where Hugging Face rotates (i, i + d/2), so the
rows of q_proj and k_proj change places; values do not change. One-dimensional tensors (the norms)
stay float32, as llama.cpp wants them; a matrix whose rows are no multiple of 32 long cannot be
q8_0 and becomes f16, as in llama.cpp's own converter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import InvalidInput
from giraffe_cli.merge_checks import check_stored_head
from giraffe_cli.tensor_dtypes import DTYPES as SOURCE_DTYPES
from giraffe_cli.tensor_stream import StoredTensor, read_layout, read_tensors
from giraffe_cli.weights import weight_files

DTYPES = ("f16", "bf16", "f32", "q8_0")
TORCH_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
ROPE_FREQS = "rope_freqs.weight"
Q8_BLOCK = 32
_CHUNK = 1 << 22
"""Elements that are converted at once: 16 MB of float32 beside source and result."""
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")


@dataclass(frozen=True)
class Planned:
    """One tensor of the file to be."""

    name: str
    dtype: str
    """`f32`, `f16`, `bf16` or `q8_0`."""
    shape: tuple[int, ...]
    """`[out, in]`, as in the checkpoint; GGUF itself lists dimensions the other way round."""
    num_bytes: int
    head_dim: int | None = None
    """Of q_proj and k_proj, whose rows change places within a head; None for the others."""


def gguf_name(name: str) -> str | None:
    """llama.cpp's name of a checkpoint tensor; None for one it has no place for."""
    if match := _LAYER_NAME.fullmatch(name):
        return f"blk.{match[1]}.{_LAYER[match[2]]}.weight" if match[2] in _LAYER else None
    return _TOP.get(name)


def plan_tensors(checkpoint: Checkpoint, dtype: str) -> dict[str, Planned]:
    """Checkpoint name → what is written, in the order in which the shards hold them.

    A stored copy of a tied `lm_head` and old `inv_freq` tables are left out.

    Raises:
        InvalidInput: biases, or tensors that a Llama in GGUF has no place for; a head that is
            stored beside the embeddings it is tied to, and is another.
    """
    check_stored_head(checkpoint)
    stored = [t for path in weight_files(checkpoint.path) for t in read_layout(path).tensors]
    tied = {"lm_head.weight"} if checkpoint.tie_word_embeddings else set()
    kept = [t for t in stored if t.name not in tied and not t.name.endswith("inv_freq")]
    foreign = [t.name for t in kept if gguf_name(t.name) is None]
    biases = [name for name in foreign if name.endswith(".bias")]
    if biases:
        raise InvalidInput(
            f"{checkpoint.source} has {len(biases)} biases, which giraffe writes into no GGUF: "
            f"{', '.join(biases[:3])}",
            "use llama.cpp's convert_hf_to_gguf.py, and hold its table against giraffe verify",
        )
    if foreign:
        raise InvalidInput(
            f"{checkpoint.source} has {len(foreign)} tensors that a Llama has no place for: "
            f"{', '.join(foreign[:3])}",
            "giraffe exports plain Llama weights",
        )
    return {tensor.name: _plan(tensor, dtype, checkpoint.head_dim) for tensor in kept}


def _plan(tensor: StoredTensor, dtype: str, head_dim: int) -> Planned:
    if len(tensor.shape) == 1:
        dtype = "f32"
    elif dtype == "q8_0" and tensor.shape[-1] % Q8_BLOCK:
        dtype = "f16"
    elements = int(np.prod(tensor.shape))
    # A q8_0 block is one float16 scale and 32 signed bytes.
    num_bytes = {"f32": 4 * elements, "q8_0": elements // Q8_BLOCK * 34}.get(dtype, 2 * elements)
    rotated = tensor.name.endswith(("q_proj.weight", "k_proj.weight"))
    name = str(gguf_name(tensor.name))
    return Planned(name, dtype, tensor.shape, num_bytes, head_dim if rotated else None)


def read_planned(
    checkpoint: Checkpoint, plan: dict[str, Planned]
) -> Iterator[tuple[Planned, torch.Tensor]]:
    """Each planned tensor with the values, the dtype and the row order of the checkpoint."""
    for path in weight_files(checkpoint.path):
        for tensor, data in read_tensors(path):
            if tensor.name in plan:
                weight = torch.frombuffer(data, dtype=SOURCE_DTYPES[tensor.dtype])
                yield plan[tensor.name], weight.reshape(tensor.shape)


def interleave_rows(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """`[heads * d, in]` from Hugging Face's order of a head's rows to ggml's.

    Row i of the first half and row i of the second become rows 2i and 2i + 1.
    """
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def encode(weight: torch.Tensor, planned: Planned) -> npt.NDArray[Any]:
    """`[rows, bytes of a row]` of the tensor in llama.cpp's row order and type.

    Raises:
        InvalidInput: a value is no number, or too large for float16.
    """
    rows = max(1, _CHUNK // max(1, weight[0].numel()))
    if not all(torch.isfinite(part).all() for part in torch.split(weight, rows)):
        raise InvalidInput(
            f"{planned.name} of the checkpoint holds NaN or infinities",
            "download or save the checkpoint again",
        )
    if planned.head_dim is not None:
        weight = interleave_rows(weight, planned.head_dim)
    if planned.dtype == "q8_0":
        return _in_chunks(weight, (weight.shape[0], planned.num_bytes // weight.shape[0]), _q8_0)
    target = TORCH_DTYPES[planned.dtype]
    width = planned.num_bytes // weight.shape[0]
    if weight.dtype != target:

        def convert(rows: torch.Tensor) -> npt.NDArray[np.uint8]:
            converted = rows.to(target)
            if not torch.isfinite(converted).all():
                raise InvalidInput(
                    f"{planned.name} has values that {planned.dtype} cannot hold",
                    "export with --dtype bf16 or f32",
                )
            return _raw(converted, width)

        return _in_chunks(weight, (weight.shape[0], width), convert)
    return _raw(weight, width)


def _raw(rows: torch.Tensor, width: int) -> npt.NDArray[np.uint8]:
    """`[rows, width]` bytes."""
    flat = rows.contiguous().reshape(-1).view(torch.uint8)
    return np.asarray(flat.numpy()).reshape(rows.shape[0], width)


def _q8_0(rows: torch.Tensor) -> npt.NDArray[np.uint8]:
    from gguf import GGMLQuantizationType, quants

    quantised = quants.quantize(rows.to(torch.float32).numpy(), GGMLQuantizationType.Q8_0)
    return np.asarray(quantised, dtype=np.uint8)


def _in_chunks(weight: torch.Tensor, shape: tuple[int, int], convert: Any) -> npt.NDArray[np.uint8]:
    """`convert` applied to a few rows at a time, so that no second whole copy is needed."""
    out = np.empty(shape, dtype=np.uint8)
    step = max(1, _CHUNK // max(1, weight[0].numel()))
    for begin in range(0, len(weight), step):
        out[begin : begin + step] = convert(weight[begin : begin + step])
    return out
