"""The phases of a training step, and which tensors live at one time in each.

Read off the code of `model/loss.py` and `train/`, for S tokens of the process, d hidden, V
vocabulary and b bytes a number (4, or 2 under bfloat16):

    layer      `plan/layer_tensors.py`
    loss       3·S·d·b + chunk·V·4    (half more in 16 bits)
    embeddings their gradient twice, where it is shared out: as it comes, and to be summed
    optimizer  two copies of the largest trained tensor

`scripts/bench_plan.py` and `bench_plan_gpu.py` hold this against training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.demand import Demand, Tensors
from giraffe_cli.plan.layer_tensors import passing, recomputed, units, wide_norms
from giraffe_cli.plan.operations import layers_away, whole_layers


@dataclass(frozen=True)
class Phase:
    """A part of a step that may be its peak."""

    name: str
    """`layer`, `loss`, `embeddings` or `optimizer`."""
    tensors: Tensors
    """What lives in it beside what waits for the backward pass."""
    beside: Literal["all", "near", "nothing"]
    """Of what waits for the backward pass: whole layers go back first, after them the recomputed
    ones whose tensors wait near, on the device, and then the others."""


def phases(demand: Demand, levers: Levers) -> list[Phase]:
    """Of a step, in its order."""
    whole = whole_layers(levers, demand.shape.num_layers)
    away = layers_away(levers, demand.shape.num_layers)
    found = [Phase("loss", _loss(demand, levers), "all")]
    if whole:
        found.append(Phase("layer", passing(demand, levers), "all"))
    if whole + away < demand.shape.num_layers:
        found.append(Phase("layer", recomputed(demand, levers, is_away=False), "near"))
    if away:
        found.append(Phase("layer", recomputed(demand, levers, is_away=True), "nothing"))
    if levers.shard_base and demand.train.method == "full":
        found.append(Phase("embeddings", _embeddings(demand), "nothing"))
    return [*found, Phase("optimizer", _optimizer(demand, levers), "nothing")]


def _loss(demand: Demand, levers: Levers) -> Tensors:
    """Hidden states, their gradient, and the logits of a chunk."""
    shape = demand.shape
    logits = min(levers.loss_chunk, demand.tokens) * shape.vocab_size
    found: Tensors = [
        (3, demand.tokens * demand.width * shape.hidden_size),
        (1, 4.0 * logits),
    ]
    found += wide_norms(demand, levers, 1, demand.tokens)
    if demand.width == 2:
        found.append((1, 2.0 * logits))
    if demand.trains_head:
        head = shape.vocab_size * shape.hidden_size
        found += [(2, 4.0 * head), (1, 2.0 * head if demand.width == 2 else 0.0)]
    return found


def _embeddings(demand: Demand) -> Tensors:
    """The end of the way back, beside the sum of the first layer's gradients."""
    layer, ends = units(demand)
    return [(2, 4.0 * ends), (1, 4.0 * layer)]


def _optimizer(demand: Demand, levers: Levers) -> Tensors:
    """AdamW's two temporaries of the tensor it moves."""
    _, ends = units(demand)
    if demand.trains_head or "embeddings" in demand.train.lora.also_train:
        is_shared = levers.shard_base and demand.train.method == "full"
        return [(2, 4.0 * ends / (demand.processes if is_shared else 1))]
    return []
