"""Peak memory of one process in a training step, part by part.

    kept       layer inputs L·S·d·b; with `attention` also its outputs L·S·(q·b + 4·h)
               of layers that are kept whole all that autograd saves
    and whichever of a layer, the loss and the optimiser needs most at one time (`plan/phases.py`)

S tokens of the process, d hidden, q = h·D query channels, L layers, b bytes a number. What is kept
is there until it has gone back, whole layers' before the others'. On a
CPU glibc keeps more, see `HEAP_SLACK`. `scripts/bench_plan.py` holds all this against training.
"""

from __future__ import annotations

from collections.abc import Sequence

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.demand import Demand, Tensors, live
from giraffe_cli.plan.layer_tensors import saved
from giraffe_cli.plan.operations import (
    adapter_numbers,
    kept_attention_layers,
    linear_shapes,
    whole_layers,
)
from giraffe_cli.plan.phases import Phase, phases

CODE_BYTES = 0.5
NF4_BYTES = 4.127 / 8
"""Of a weight: a code of 4 bits, a scale of 8 for each 64, and one of 32 for each 256 of those."""
CPU_PROCESS_BYTES = 570_000_000
"""Interpreter, torch, transformers, PEFT with bitsandbytes (45 MB), their kernels paged in: what a
training of 50,000 weights takes."""
CUDA_PROCESS_BYTES = 1_000_000_000
"""CUDA's context and cuBLAS's workspace; the caching allocator's slack is the margin's affair."""
HEAP_LIMIT = 32 << 20
"""Bytes from which glibc maps a tensor by itself and hands it back when it is freed (mallopt(3):
DEFAULT_MMAP_THRESHOLD_MAX); smaller ones lie in its heap, which does not shrink."""
HEAP_SLACK = 1.75
"""The heap's size over what lives in it at the most: holes between small objects. Fitted; between
1.4 and 2.0 over the settings marked `fit` in `scripts/bench_plan.py`."""
KEPT_SLACK = 1.35
"""The same of what whole layers keep, which comes and goes in order. Fitted: 1.27 to 1.4 of 30
layers of SmolLM2 over 1,024 and 2,048 tokens in 16 and 32 bits; 1.35 to 1.41 of what dropout and
DoRA keep beside it."""
UNFUSED_SLACK, TWICE_SLACK = 1.8, 2.4
"""The same where PEFT's layers run one by one and what they make and drop leaves holes of its size,
and where they make as much again: a second adapter (PiSSA's start) or weights read from 4 bits.
Of 6 layers of SmolLM2's width over 2,048 tokens: 1.80; 2.40 and 2.11."""


def bytes_by_part(demand: Demand, levers: Levers) -> dict[str, int]:
    """Predicted bytes at the peak, by part; `total` is their sum."""
    found = phases(demand, levers)
    whole, waiting = _whole(demand, levers), recomputed_bytes(demand, levers)

    def kept(phase: Phase) -> float:
        near = 0.0 if phase.beside == "nothing" else waiting - away_bytes(demand, levers)
        return near + (live(whole) if phase.beside == "all" else 0.0)

    peak = max(found, key=lambda phase: live(phase.tensors) + kept(phase))
    parts: dict[str, float] = {
        "process": CPU_PROCESS_BYTES if demand.kind == "cpu" else CUDA_PROCESS_BYTES,
        "weights": _weights(demand, levers),
        "trained": _trained(demand, levers),
        "kept": kept(peak),
        peak.name: live(peak.tensors),
    }
    if demand.keeps_freed:
        arena = waiting - away_bytes(demand, levers)  # `ArenaStore`: mapped blocks
        resident = _resident(found, whole, kept_slack(demand, levers)) + arena
        parts["heap"] = max(0.0, resident - parts["kept"] - parts[peak.name])
    rounded = {name: int(count) for name, count in parts.items() if count}
    return {**rounded, "total": sum(rounded.values())}


def kept_slack(demand: Demand, levers: Levers) -> float:
    """Of the heap that whole layers' tensors lie in, over their bytes."""
    train = demand.train
    if levers.fused or train.method != "lora" or train.lora.dropout or train.lora.use_dora:
        return KEPT_SLACK
    is_twice = train.lora.init_lora_weights == "pissa" or train.quantize_base != "none"
    return TWICE_SLACK if is_twice else UNFUSED_SLACK


def _resident(found: Sequence[Phase], whole: Tensors, slack: float) -> float:
    """What the phases occupy under glibc: the heap as large as any of them needed it, the largest
    of what is mapped beside it."""
    kept = [whole if phase.beside == "all" else [] for phase in found]
    both = list(zip(found, kept, strict=True))
    in_heap = [HEAP_SLACK * _small(p.tensors) + slack * _small(beside) for p, beside in both]
    mapped = [_large(p.tensors) + _large(beside) for p, beside in both]
    return max(in_heap) + max(mapped)


def _small(tensors: Tensors) -> float:
    """Bytes of what lies in glibc's heap."""
    return live([one for one in tensors if one[1] < HEAP_LIMIT])


def _large(tensors: Tensors) -> float:
    """Bytes of what is mapped by itself."""
    return live(tensors) - _small(tensors)


def _weights(demand: Demand, levers: Levers) -> float:
    """Of the base, as it is loaded; shared out, a part of it and two layers."""
    shape, train = demand.shape, demand.train
    if levers.shard_base:
        return _shared_weights(demand)
    if train.method == "full":
        return 4.0 * shape.num_parameters
    if train.quantize_base == "none":
        return shape.num_parameters * demand.width
    linear = _linear_numbers(shape)
    return linear * NF4_BYTES + (shape.num_parameters - linear) * demand.width


def _linear_numbers(shape: Checkpoint) -> int:
    return shape.num_layers * sum(i * o for i, o in linear_shapes(shape).values())


def _shared_weights(demand: Demand) -> float:
    """A process's part of what is gathered, two units whole, and what is not shared out; of a base
    in 4 bits that is its scales too."""
    shape, units = demand.shape, sharded_numbers(demand)
    rest = shape.num_parameters - sum(units)
    if demand.train.method == "full":
        kept = rest + sum(units) / demand.processes
        return 4 * kept + 2 * max(demand.width * units[0], 4 * units[-1])
    gathered = gathered_bytes(demand)
    is_coded = demand.train.quantize_base != "none"
    scales = _linear_numbers(shape) * (NF4_BYTES - CODE_BYTES) if is_coded else 0.0
    shares = sum(gathered) / demand.processes
    return rest * demand.width + scales + shares + 2 * max(gathered)


def gathered_bytes(demand: Demand) -> list[float]:
    """Of each of `sharded_numbers`, as they are sent: codes of layers in 4 bits."""
    of_layers = CODE_BYTES if demand.train.quantize_base != "none" else demand.width
    units, layers = sharded_numbers(demand), demand.shape.num_layers
    return [n * (of_layers if place < layers else demand.width) for place, n in enumerate(units)]


def sharded_numbers(demand: Demand) -> list[int]:
    """Numbers of what is gathered at a time when the base is shared out: every layer's matrices,
    the embeddings, and the head unless it is them."""
    shape = demand.shape
    layer = sum(i * o for i, o in linear_shapes(shape).values())
    is_trained = "embeddings" in demand.train.lora.also_train
    heads = (0 if is_trained else 1) + (0 if shape.tie_word_embeddings else 1)
    return [layer] * shape.num_layers + [shape.vocab_size * shape.hidden_size] * heads


def _trained(demand: Demand, levers: Levers) -> float:
    """Float32 numbers beside the base, and gradient and moments of all that is trained."""
    numbers: float = trained_numbers(demand.shape, demand.train)
    if levers.shard_base and demand.train.method == "full":
        shared = sum(sharded_numbers(demand))
        numbers += shared / demand.processes - shared
    copies = 0 if demand.train.method == "full" else 4
    moments = 8 if demand.train.optimizer == "adamw" else 2
    return float(numbers * (copies + 4 + moments))


def trained_numbers(shape: Checkpoint, train: TrainConfig) -> int:
    """How many numbers the optimiser moves."""
    if train.method == "full":
        return shape.num_parameters
    also, d = train.lora.also_train, shape.hidden_size
    norms = (2 * shape.num_layers + 1) * d if "norms" in also else 0
    embeddings = shape.vocab_size * d if "embeddings" in also else 0
    return adapter_numbers(shape, train) + norms + embeddings


def _whole(demand: Demand, levers: Levers) -> Tensors:
    """What layers that are not recomputed keep."""
    count = whole_layers(levers, demand.shape.num_layers)
    return [(count * of_one, size) for of_one, size in saved(demand, levers)]


def recomputed_bytes(demand: Demand, levers: Levers, first: int | None = None) -> float:
    """What recomputed layers, or the first so many of them, leave for the backward pass, wherever
    it waits: inputs, and what is kept of their attention."""
    layers = demand.shape.num_layers
    recomputed = layers - whole_layers(levers, layers)
    count = recomputed if first is None else min(first, recomputed)
    attending = max(0, count - (recomputed - kept_attention_layers(levers, layers)))
    inputs = demand.shape.hidden_size * demand.width
    outputs = demand.queries * demand.width + 4 * demand.shape.num_attention_heads
    return float(demand.tokens * (count * inputs + attending * outputs))


def away_bytes(demand: Demand, levers: Levers) -> float:
    """The part of that which waits in host memory or in a file."""
    if levers.offload == "none":
        return 0.0
    return recomputed_bytes(demand, levers, levers.offload_layers or None)
