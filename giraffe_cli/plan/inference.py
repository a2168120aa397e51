"""How long `giraffe generate` takes, and what it holds, for every way of keeping keys and values.

    prefill   F_lin · S + F_att(S) at the rates of products and of attention, and L passes a chunk
    decode    a token reads all weights and all keys and values, and makes L passes

S tokens, L layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.model.reading import PROMPT_CHUNKS
from giraffe_cli.plan.estimate import assumed_pace
from giraffe_cli.plan.inference_memory import DTYPE_BYTES, Demand
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.operations import forward_per_token
from giraffe_cli.plan.step_time import BYTES_PER_SECOND

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


def predict(
    shape: Checkpoint,
    machine: Machine,
    pace: InferencePace,
    dtype: str,
    prompt_length: int,
    max_new_tokens: int,
    host_bytes: int | None = None,
) -> dict[str, Any]:
    """The prediction as `--json` gives it: one entry in `caches` for each way of keeping, on the
    device or, given `host_bytes` of it, in host memory."""
    held, offload = prompt_length + max_new_tokens, host_bytes is not None

    def with_pace(cache: dict[str, Any]) -> dict[str, Any]:
        kept, each = cache["kv_dtype"], cache["bytes_per_token"] if offload else 0.0
        read = prefill_seconds(shape, pace, kept, prompt_length, machine, each)
        return {
            **cache,
            "prefill_seconds": read,
            "decode_tokens_per_second": 1 / decode_seconds(shape, pace, kept, dtype, held, each),
        }

    demand = Demand(shape, dtype, prompt_length, max_new_tokens, machine, host_bytes)
    return {
        "model": shape.source,
        "parameters": shape.num_parameters,
        "window": shape.reach,
        "dtype": dtype,
        "prompt_length": prompt_length,
        "max_new_tokens": max_new_tokens,
        "kv_offload": offload,
        "host_bytes": host_bytes,
        "caches": [with_pace(cache) for cache in demand.caches()],
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
    copied: float = 0.0,
) -> float:
    """Until the state of the last of `tokens` is there; `copied` are the bytes of a token that come
    from host memory, beside the computation."""
    per_token = forward_per_token(shape, tokens)
    passes = -(-tokens // PROMPT_CHUNKS[machine.kind])
    seconds = tokens * (per_token.linear / pace.linear + per_token.attention / pace.attention)
    made = passes * tokens / 2 * numbers_per_token(shape)  # of all that was kept before a chunk
    seconds += made * pace.unpack_seconds[kept]
    seconds = max(seconds, passes * tokens / 2 * copied / BYTES_PER_SECOND["host"])
    return seconds + passes * shape.num_layers * pace.layer_seconds


def decode_seconds(
    shape: Checkpoint,
    pace: InferencePace,
    kept: str,
    dtype: str,
    held: int,
    copied: float = 0.0,
) -> float:
    """Of one token behind `held` others; `copied` as in `prefill_seconds`."""
    embeddings = shape.vocab_size * shape.hidden_size * (not shape.tie_word_embeddings)
    weights = (shape.num_parameters - embeddings) * DTYPE_BYTES[dtype]
    each = pace.number_seconds + pace.unpack_seconds[kept]
    attending = held * numbers_per_token(shape) * each
    attending = max(attending, held * copied / BYTES_PER_SECOND["host"])
    return weights / pace.weight_bytes + attending + shape.num_layers * pace.layer_seconds


def numbers_per_token(shape: Checkpoint) -> int:
    """Of its keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_key_value_heads * shape.head_dim


def assumed_inference_pace(machine: Machine, dtype: str) -> InferencePace:
    """What is assumed of a machine that nobody has measured."""
    assumed = assumed_pace(machine, dtype)
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
