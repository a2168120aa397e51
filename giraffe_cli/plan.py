"""What a training run will cost before anything is loaded: bytes, tokens and operations.

Per token of a window of S tokens, all of it one document (an upper bound for packed rows)

    F_lin = 2·L·(2·d·h·D + 2·d·k·D + 3·d·f)    F_head = 2·d·V    F_att = 4·L·h·D·(S/2)

A LoRA step needs 2·(F_lin + F_head) + 3.5·F_att, and with gradient checkpointing F_lin + F_att once
more. L layers, d hidden, h heads of D, k key/value heads, f intermediate, V vocabulary. A first
estimate: measured runs lie within a third of it (`scripts/bench_scaling.py`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config import ExtendConfig, resolve_dtype
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.units import format_bytes, format_length

PROCESS_BYTES = 450_000_000
"""Interpreter, torch and transformers, before any weight."""
_ADAM_BYTES = 16
"""A trained float32 number: itself, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Machine:
    """Where the run would take place."""

    kind: str
    """`cpu` or `cuda`."""
    devices: int
    memory_bytes: int
    """Of one device; of the host on a CPU."""
    keeps_freed: bool = False
    """The process's heap keeps what it frees (glibc without MALLOC_MMAP_THRESHOLD_)."""


def this_machine() -> Machine:
    """The GPUs that are visible, else this host."""
    import torch

    if torch.cuda.is_available():
        memory = min(
            torch.cuda.get_device_properties(n).total_memory
            for n in range(torch.cuda.device_count())
        )
        return Machine("cuda", torch.cuda.device_count(), memory)
    keeps_freed = "MALLOC_MMAP_THRESHOLD_" not in os.environ
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine("cpu", 1, memory, keeps_freed)


def estimate(
    shape: Checkpoint, config: ExtendConfig, machine: Machine | None = None
) -> dict[str, Any]:
    """Predicted `bytes` by part with their `total`, `tokens_per_step`, `trained_tokens`,
    `flops_per_step` and `flops`; all for one process, a step of full windows."""
    machine = machine or this_machine()
    parts = _bytes_by_part(shape, config, machine)
    tokens_per_step = config.window * config.train.windows_per_step
    flops_per_step = tokens_per_step * flops_per_token(
        shape, config.window, config.train.checkpointing != "none"
    )
    return {
        "window": config.window,
        "dtype": resolve_dtype(config.dtype, shape.dtype),
        "bytes": {**parts, "total": sum(parts.values())},
        "steps": config.train.steps,
        "tokens_per_step": tokens_per_step,
        "trained_tokens": tokens_per_step * config.train.steps,
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * config.train.steps,
        "machine": asdict(machine),
    }


def check_fits(estimated: dict[str, Any]) -> None:
    """Refuse a run that clearly cannot be held.

    Raises:
        DoesNotFit: the estimate exceeds all memory of the machine; the levers are named.
    """
    machine, parts = estimated["machine"], dict(estimated["bytes"])
    total = parts.pop("total")
    if total <= machine["memory_bytes"]:
        return
    largest = max(parts, key=lambda name: parts[name])
    raise DoesNotFit(
        f"training needs about {format_bytes(total)}, this machine's {machine['kind']} has "
        f"{format_bytes(machine['memory_bytes'])}; the largest part is {largest} with "
        f"{format_bytes(parts[largest])}",
        _levers(estimated),
    )


def flops_per_token(shape: Checkpoint, window: int, gradient_checkpointing: bool) -> float:
    """Operations of a LoRA step per token, forward and backward, recomputation included."""
    linear = 2 * shape.num_layers * sum(i * o for i, o in _linear_shapes(shape).values())
    head = 2 * shape.hidden_size * shape.vocab_size
    attention = 2 * shape.num_layers * shape.num_attention_heads * shape.head_dim * window
    recomputed = linear + attention if gradient_checkpointing else 0
    return 2.0 * (linear + head) + 3.5 * attention + recomputed


def _linear_shapes(shape: Checkpoint) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of a layer's projections by name."""
    d, f = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    return {
        "q_proj": (d, queries),
        "k_proj": (d, keys),
        "v_proj": (d, keys),
        "o_proj": (queries, d),
        "gate_proj": (d, f),
        "up_proj": (d, f),
        "down_proj": (f, d),
    }


def _bytes_by_part(shape: Checkpoint, config: ExtendConfig, machine: Machine) -> dict[str, int]:
    train, window = config.train, config.window
    width = 4 if resolve_dtype(config.dtype, shape.dtype) == "float32" else 2
    shapes = _linear_shapes(shape)
    adapted = sum(sum(s) for name, s in shapes.items() if name in train.lora.targets)
    adapter_numbers = shape.num_layers * train.lora.rank * adapted
    layer = window * layer_bytes_per_token(shape, width)
    kept = shape.num_layers * (
        window * shape.hidden_size * width if train.checkpointing != "none" else layer
    )
    on_heap = machine.keeps_freed and train.checkpointing != "none"
    chunk = min(1024 if train.loss_chunk == "auto" else train.loss_chunk, window)
    return {
        "process": PROCESS_BYTES if machine.kind == "cpu" else 0,
        "weights": shape.num_parameters * width,
        "adapter_and_optimizer": adapter_numbers * _ADAM_BYTES,
        "layer_inputs" if train.checkpointing != "none" else "activations": kept,
        "one_layer": layer,
        "heap": int(layer * _freed_but_kept(shape.num_layers)) if on_heap else 0,
        # logits and their gradient's copy in float32, and the gradient of the hidden states
        "loss": 2 * chunk * shape.vocab_size * 4 + 2 * window * shape.hidden_size * width,
    }


def _freed_but_kept(num_layers: int) -> float:
    """Layers' worth of freed tensors that stay resident on a CPU; fitted to 2-30 layers.

    glibc serves tensors below 32 MB from its heap and cuts the holes up with small objects:
    SmolLM2's 30 layers hold 5.0 GB at 4,096 tokens for 0.9 GB of live ones. With
    MALLOC_MMAP_THRESHOLD_=1048576 they are handed back, at 28 % more time for page faults.
    """
    return 1.5 + 0.45 * num_layers


def layer_bytes_per_token(shape: Checkpoint, width: int) -> int:
    """What the backward pass of one layer holds: its saved activations and two MLP gradients."""
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    norms = 2 * shape.hidden_size * (4 + width)
    attention = (4 * queries + 4 * keys + shape.hidden_size) * width
    mlp = (6 * shape.intermediate_size + 2 * shape.hidden_size) * width
    return norms + attention + mlp


def _levers(estimated: dict[str, Any]) -> str:
    """What would make it smaller, most effective first."""
    levers = []
    if estimated["window"] > 2048:
        levers.append("train shorter windows with PoSE: --window 2k")
    if "activations" in estimated["bytes"]:
        levers.append("--set train.checkpointing=full")
    if estimated["machine"]["keeps_freed"]:
        levers.append("hand freed memory back: MALLOC_MMAP_THRESHOLD_=1048576 (28 % slower)")
    if estimated["dtype"] == "float32":
        levers.append("halve weights and activations: --set dtype=bfloat16")
    shorter = format_length(max(1024, estimated["window"] // 2))
    levers.append(f"choose a shorter --target-len, such as {shorter}, or a smaller model")
    return "; ".join(levers)
