"""What `giraffe generate` will hold, for every way of keeping keys and values.

    process + weights + bytes of a token · (prompt + answer) + what one chunk works with

so the longest prompt that fits is a division. Bytes of a token are those of the formats themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.model.kv_formats import FORMATS, GROUP, AbstractFormat, Cast
from giraffe_cli.model.loading import torch_dtype
from giraffe_cli.model.reading import HEAD_ROWS, PROMPT_CHUNKS
from giraffe_cli.model.stored import PIECES
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import CPU_PROCESS_BYTES, CUDA_PROCESS_BYTES
from giraffe_cli.units import format_bytes
from giraffe_cli.weights import Sizes

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def formats(dtype: str) -> dict[str, AbstractFormat]:
    """Every way of keeping keys and values of a model that computes in `dtype`, by name."""
    return {dtype: Cast(torch_dtype(dtype)), **FORMATS}


def bytes_per_token(shape: Checkpoint | Sizes, form: AbstractFormat, dtype: str) -> float:
    """Of one token's keys and values in all layers."""
    group = torch.zeros(1, shape.num_key_value_heads, GROUP, shape.head_dim)
    parts = form.write(*[group.to(torch_dtype(dtype))] * 2)
    size = sum(part.numel() * part.element_size() for part in parts)
    return shape.num_layers * size / GROUP


def working_bytes(shape: Checkpoint | Sizes, dtype: str, kind: str) -> int:
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


@dataclass(frozen=True)
class Demand:
    """What is to be read and answered, and where."""

    shape: Checkpoint | Sizes
    dtype: str
    """Computation type, resolved."""
    prompt_length: int
    """Tokens of the longest prompt."""
    max_new_tokens: int
    machine: Machine
    host_bytes: int | None = None
    """Of the host's memory for keys and values that are kept there; None: they lie with the
    weights."""

    @property
    def fixed(self) -> dict[str, int]:
        """Bytes beside keys and values, by part."""
        process = CPU_PROCESS_BYTES if self.machine.kind == "cpu" else CUDA_PROCESS_BYTES
        return {
            "process": process,
            "weights": self.shape.num_parameters * DTYPE_BYTES[self.dtype],
            "working": working_bytes(self.shape, self.dtype, self.machine.kind),
        }

    @property
    def room(self) -> int:
        """Bytes for keys and values; negative where the rest does not fit."""
        left = self.machine.usable_bytes - sum(self.fixed.values())
        return left if self.host_bytes is None or left < 0 else self.host_bytes

    def caches(self) -> list[dict[str, Any]]:
        """One entry for each way of keeping keys and values, as `caches` of `--json` gives it;
        `total` is of the device."""
        return [self._cache(name, form) for name, form in formats(self.dtype).items()]

    def _cache(self, name: str, form: AbstractFormat) -> dict[str, Any]:
        each = bytes_per_token(self.shape, form, self.dtype)
        parts = {**self.fixed, "kv": int(each * (self.prompt_length + self.max_new_tokens))}
        here = self.fixed if self.host_bytes is not None else parts
        return {
            "kv_dtype": name,
            "bytes_per_token": each,
            "bytes": {**parts, "total": sum(here.values())},
            "fits": parts["kv"] <= self.room,
            "longest_prompt": max(0, int(self.room / each) - self.max_new_tokens),
        }


def check_fits(demand: Demand, kv_dtype: str) -> None:
    """Refuse a prompt that cannot be held; `kv_dtype` is `auto` or the name of a format.

    Raises:
        DoesNotFit: with what is needed, what would fit, and the longest prompt that does.
    """
    found = {one["kv_dtype"]: one for one in demand.caches()}
    chosen = found[demand.dtype if kv_dtype == "auto" else kv_dtype]
    if chosen["fits"]:
        return
    machine, parts = demand.machine, chosen["bytes"]
    beside = ""
    if demand.host_bytes is not None:
        beside = f", and {format_bytes(demand.host_bytes)} of the host for keys and values"
    raise DoesNotFit(
        f"a prompt of {demand.prompt_length:,} tokens with {demand.max_new_tokens:,} new ones "
        f"needs {format_bytes(parts['total'])} (predicted), {format_bytes(parts['weights'])} for "
        f"weights and {format_bytes(parts['kv'])} for keys and values in {chosen['kv_dtype']}; "
        f"{machine.label} has {format_bytes(machine.memory_bytes)}, "
        f"{format_bytes(machine.usable_bytes)} after a margin{beside}",
        _what_would_fit(demand, chosen, list(found.values())),
    )


def _what_would_fit(demand: Demand, chosen: dict[str, Any], found: list[dict[str, Any]]) -> str:
    ways = [f"--kv-dtype {one['kv_dtype']} fits" for one in found if one["fits"]]
    smallest = min(found, key=lambda one: one["bytes_per_token"])
    for one in (chosen, smallest) if chosen is not smallest else (chosen,):
        if one["longest_prompt"] and not one["fits"]:
            ways.append(f"a prompt of {one['longest_prompt']:,} tokens fits in {one['kv_dtype']}")
    in_all = int(demand.room / smallest["bytes_per_token"])
    if not ways and in_all > demand.prompt_length:
        most = in_all - demand.prompt_length
        ways = [f"--max-new-tokens {most} fits in {smallest['kv_dtype']}"]
    beside = sum(demand.fixed.values())
    can_offload = demand.machine.kind == "cuda" and demand.host_bytes is None
    if can_offload and beside <= demand.machine.usable_bytes:
        size = format_bytes(smallest["bytes"]["kv"])
        ways.append(f"--kv-offload, with {size} of host memory in {smallest['kv_dtype']}")
    if not ways:
        shorter = "--dtype bfloat16, " if demand.dtype == "float32" else ""
        ways = [f"{shorter}a smaller model or a larger machine"]
    return "; ".join(ways)
