"""What `giraffe generate` will hold and take, for every way of keeping keys and values.

    memory    process + weights + bytes of a token · (prompt + answer) + what one chunk works with
    prefill   F_lin · S + F_att(S) at the rates of products and of attention, and L passes a chunk
    decode    a token reads all weights and all keys and values, and makes L passes

so the longest prompt that fits is a division. Bytes of a token are those of the formats themselves.
L layers, d hidden, f intermediate, h heads and k key heads of D, V vocabulary, S tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from giraffe_cli.checkpoint import Checkpoint, torch_dtype
from giraffe_cli.model.kv_formats import FORMATS, GROUP, AbstractFormat, Cast
from giraffe_cli.model.reading import HEAD_ROWS, PROMPT_CHUNKS
from giraffe_cli.model.stored import PIECES
from giraffe_cli.plan.estimate import assumed_pace
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import CPU_PROCESS_BYTES, CUDA_PROCESS_BYTES
from giraffe_cli.plan.operations import forward_per_token

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


BANDWIDTH = {"h200": 4.8e12, "h100": 3.35e12, "a100": 2.04e12, "rtx4090": 1.01e12, "cpu": 1.0e11}
"""Bytes a second of memory, from data sheets; of the assumed CPU eight channels at half speed."""
BANDWIDTH_SHARE = 0.6
"""Of it that a single token's products sustain."""
GPU_LAYER_SECONDS = 4e-4
"""Of a pass through a layer of transformers on a GPU, launches and Python."""


@dataclass(frozen=True)
class InferencePace:
    """What a machine sustains while it reads and answers."""

    linear: float
    """Operations a second in products of a chunk."""
    attention: float
    """Operations a second of a chunk attending to a long past."""
    weight_bytes: float
    """Bytes a second of weights that a single token meets."""
    number_seconds: float
    """Of a single token attending, for each number of keys and values in the model's type."""
    unpack_seconds: dict[str, float]
    """To make such a number of one that is kept, by how it is kept."""
    layer_seconds: float
    """More for a pass through a layer, whatever it reads."""
    is_measured: bool
    source: str


def formats(dtype: str) -> dict[str, AbstractFormat]:
    """Every way of keeping keys and values of a model that computes in `dtype`, by name."""
    return {dtype: Cast(torch_dtype(dtype)), **FORMATS}


def bytes_per_token(shape: Checkpoint, form: AbstractFormat, dtype: str) -> float:
    """Of one token's keys and values in all layers."""
    group = torch.zeros(1, shape.num_key_value_heads, GROUP, shape.head_dim)
    parts = form.write(*[group.to(torch_dtype(dtype))] * 2)
    size = sum(part.numel() * part.element_size() for part in parts)
    return shape.num_layers * size / GROUP


def working_bytes(shape: Checkpoint, dtype: str, kind: str) -> int:
    """What a chunk holds at one time at its widest: the MLP, or attention to a piece of the past;
    besides, the head's rows in float32 and one state's logits."""
    width, chunk = DTYPE_BYTES[dtype], PROMPT_CHUNKS[kind]
    d, f = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    states = chunk * d * (2 * width + 4)
    mlp = chunk * 3 * f * width
    attention = chunk * queries * (2 * width + 3 * 4) + 2 * PIECES[kind] * keys * (width + 1)
    head = 4 * (HEAD_ROWS * d + 2 * shape.vocab_size)
    return states + max(mlp, attention) + head


def predict(
    shape: Checkpoint,
    machine: Machine,
    pace: InferencePace,
    dtype: str,
    prompt_length: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """The prediction as `--json` gives it: one entry in `caches` for each way of keeping."""
    weights = shape.num_parameters * DTYPE_BYTES[dtype]
    process = CPU_PROCESS_BYTES if machine.kind == "cpu" else CUDA_PROCESS_BYTES
    fixed = {
        "process": int(process),
        "weights": int(weights),
        "working": working_bytes(shape, dtype, machine.kind),
    }
    held = prompt_length + max_new_tokens

    def cache(name: str, form: AbstractFormat) -> dict[str, Any]:
        each = bytes_per_token(shape, form, dtype)
        parts = {**fixed, "kv": int(each * held)}
        total = sum(parts.values())
        room = machine.usable_bytes - sum(fixed.values())
        return {
            "kv_dtype": name,
            "bytes_per_token": each,
            "bytes": {**parts, "total": total},
            "fits": total <= machine.usable_bytes,
            "longest_prompt": max(0, int(room / each) - max_new_tokens),
            "prefill_seconds": prefill_seconds(shape, pace, name, prompt_length, machine),
            "decode_tokens_per_second": 1 / decode_seconds(shape, pace, name, dtype, held),
        }

    return {
        "model": shape.source,
        "parameters": shape.num_parameters,
        "window": shape.reach,
        "dtype": dtype,
        "prompt_length": prompt_length,
        "max_new_tokens": max_new_tokens,
        "caches": [cache(name, form) for name, form in formats(dtype).items()],
        "usable_bytes": machine.usable_bytes,
        "pace": asdict(pace),
        "machine": asdict(machine),
    }


def prefill_seconds(
    shape: Checkpoint,
    pace: InferencePace,
    kept: str,
    tokens: int,
    machine: Machine,
) -> float:
    """Until the state of the last of `tokens` is there."""
    per_token = forward_per_token(shape, tokens)
    passes = -(-tokens // PROMPT_CHUNKS[machine.kind])
    seconds = tokens * (per_token.linear / pace.linear + per_token.attention / pace.attention)
    made = passes * tokens / 2 * numbers_per_token(shape)  # of all that was kept before a chunk
    seconds += made * pace.unpack_seconds[kept]
    return seconds + passes * shape.num_layers * pace.layer_seconds


def decode_seconds(
    shape: Checkpoint, pace: InferencePace, kept: str, dtype: str, held: int
) -> float:
    """Of one token behind `held` others."""
    embeddings = shape.vocab_size * shape.hidden_size * (not shape.tie_word_embeddings)
    weights = (shape.num_parameters - embeddings) * DTYPE_BYTES[dtype]
    each = pace.number_seconds + pace.unpack_seconds[kept]
    attending = held * numbers_per_token(shape) * each
    return weights / pace.weight_bytes + attending + shape.num_layers * pace.layer_seconds


def numbers_per_token(shape: Checkpoint) -> int:
    """Of its keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim


def assumed_inference_pace(machine: Machine, dtype: str) -> InferencePace:
    """What is assumed of a machine that nobody has measured."""
    assumed = assumed_pace(machine)
    name = machine.name or ("cpu" if machine.kind == "cpu" else "a100")
    memory, width = BANDWIDTH[name] * BANDWIDTH_SHARE, DTYPE_BYTES[dtype]
    # codes are read; numbers are written, read, scaled and written
    unpacking = {"bfloat16": (2 + width) / memory, "int8": (1 + 3 * width) / memory}
    unpacking["int4"] = (0.5 + 3 * width) / memory
    return InferencePace(
        linear=assumed.rates.linear,
        attention=assumed.rates.attention,
        weight_bytes=memory,
        number_seconds=width / memory,
        unpack_seconds={**unpacking, dtype: 0.0},
        layer_seconds=0.0 if machine.kind == "cpu" else GPU_LAYER_SECONDS,
        is_measured=False,
        source=f"{assumed.source}; {BANDWIDTH[name] / 1e9:,.0f} GB/s, {BANDWIDTH_SHARE:.0%} of it",
    )
