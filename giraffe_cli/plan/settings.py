"""The settings of the levers that a config leaves open on one kind of machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.levers import Levers, Offload
from giraffe_cli.plan.demand import Demand

CHUNKS = {"cpu": (256, 128), "cuda": (4096, 2048, 1024, 512, 256, 128)}
"""Tokens whose logits exist at a time, when the choice is left; on a CPU more are not faster."""
TILES = {"cpu": 1024, "cuda": 4096}
"""Tokens of an MLP tile, when the choice is left; tiles of this size take no time (`Levers`)."""
HEAD_GROUPS = {"cpu": 1, "cuda": 4}
"""At the most, when the choice is left: a CPU's threads share the heads out, and of a GPU's memory
what a group needs is a tenth of a layer's by then."""
OFFLOAD: dict[str, Offload] = {"cpu": "disk", "cuda": "host"}


def settings(demand: Demand) -> Iterator[Levers]:
    """Every setting that the config allows, the loss chunk still open where it is left.

    Raises:
        InvalidInput: offload to host memory on a CPU, or a base for one process to share out.
    """
    train, kind = demand.train, demand.kind
    if train.shares_base and demand.processes == 1:
        raise InvalidInput(
            f"train.shard_base: {train.shard_base} has no effect on one process",
            "--gpus N, with as many GPUs, or leave it to auto",
        )
    if train.offload == "host" and kind == "cpu":
        raise InvalidInput(
            "train.offload: host has no effect on a CPU, whose memory is the host's",
            "--set train.offload=disk, or leave it to auto",
        )
    choices = _choices(demand)
    for values in itertools.product(*choices.values()):
        levers = Levers(**dict(zip(choices, values, strict=True)), fused=_is_fused(demand))
        if _has_effect(levers) and (train.whole_layers != "auto" or _is_roomy(levers)):
            groups = head_groups(demand) if levers.projection_tile else 1
            yield replace(levers, head_groups=groups)


def _has_effect(levers: Levers) -> bool:
    """Whether each lever changes something beside the others."""
    if levers.checkpointing == "none":
        tiles = levers.mlp_tile or levers.projection_tile
        counts = levers.offload_layers or levers.attention_layers or levers.whole_layers
        return levers.offload == "none" and not (tiles or counts or levers.shard_base)
    return (
        (levers.offload != "none" or levers.offload_layers == 0)
        and (levers.checkpointing == "attention" or levers.attention_layers == 0)
        and not (levers.shard_base and levers.whole_layers)
    )


def _is_roomy(levers: Levers) -> bool:
    """Whether layers are kept whole only while nothing slower makes room: a layer that is
    recomputed makes more of it than one whose attention is computed twice, or that is offloaded."""
    keeps = levers.checkpointing == "attention" and levers.attention_layers == 0
    return not levers.whole_layers or (keeps and levers.offload == "none")


def allows(train: TrainConfig, levers: Levers, num_layers: int) -> bool:
    """Whether `levers` are a setting that `train` leaves open."""
    same = (
        *("checkpointing", "offload", "mlp_tile", "projection_tile", "head_groups", "loss_chunk"),
        *("whole_layers", "offload_layers", "attention_layers"),
    )
    asked: dict[str, Any] = {name: getattr(train, name) for name in same}
    if levers.head_groups > 1 and train.sequence_parallel > 1:
        return False  # as in `TrainConfig`: processes share the heads already
    asked["fused"] = {"on": True, "off": False}.get(train.fused_layers, "auto")
    asked["shard_base"] = "auto" if train.shard_base == "auto" else train.shares_base
    return all(
        value == "auto" or _bounded(name, value, num_layers) == getattr(levers, name)
        for name, value in asked.items()
    )


def head_groups(demand: Demand) -> int:
    """Into how many groups heads are divided, where projections go by tiles.

    Raises:
        InvalidInput: as many as were asked for do not divide the key heads.
    """
    keys, asked = demand.shape.num_key_value_heads, demand.train.head_groups
    if asked == "auto":
        many = HEAD_GROUPS[demand.kind] if demand.train.sequence_parallel == 1 else 1
        return max(count for count in range(1, many + 1) if keys % count == 0)
    if keys % asked:
        raise InvalidInput(
            f"train.head_groups: {asked} do not divide the {keys} key heads there are",
            "--set train.head_groups=auto",
        )
    return asked


def _is_fused(demand: Demand) -> bool:
    """Whether projections are taken together: of adapters over frozen weights, those in 4 bits on a
    CPU alone, since it has not run on a GPU yet; what else forbids it shows when the model is
    built."""
    train = demand.train
    if train.fused_layers != "auto":
        return train.fused_layers == "on"
    has_run = train.quantize_base == "none" or demand.kind == "cpu"
    lora = train.lora
    is_other = lora.use_dora or lora.dropout or lora.init_lora_weights == "pissa"
    is_plain = train.method == "lora" and not is_other and not demand.shape.attention_dropout
    return is_plain and has_run


def _choices(demand: Demand) -> dict[str, list[Any]]:
    """Values to try of each lever, by its name."""
    train, kind = demand.train, demand.kind
    tiles = [0, TILES[kind]] if TILES[kind] < demand.tokens else [0]
    layers = demand.shape.num_layers
    eighths = [*range(max(1, layers // 8), layers, max(1, layers // 8)), 0]
    every = eighths if kind == "cuda" else [0]
    # what has not run on a GPU yet is proposed there, and taken when it is asked for
    on_cpu = kind == "cpu"
    # what was attended to cannot be had again without its mask
    kept = [] if demand.shape.attention_dropout else ["attention"]
    left: dict[str, list[Any]] = {
        "checkpointing": ["none", *kept, "full"],
        "offload": ["none", OFFLOAD[kind]],
        "mlp_tile": tiles,
        "projection_tile": tiles if on_cpu else [0],
        "offload_layers": every,
        "attention_layers": every,
        "whole_layers": eighths if on_cpu else [0],
        "loss_chunk": [CHUNKS[kind][0]],
    }
    asked = {name: getattr(train, name) for name in left}
    values = {
        name: left[name] if value == "auto" else [_bounded(name, value, layers)]
        for name, value in asked.items()
    }
    return {**values, "shard_base": _sharding(demand)}


def _bounded(name: str, value: Any, layers: int) -> Any:
    """What the config asks for, as a lever has it."""
    if name.endswith("_tile") and value == "none":
        return 0
    return min(value, layers) if name.endswith("_layers") else value


def _sharding(demand: Demand) -> list[bool]:
    """Whether processes share the base out, where there are several."""
    train = demand.train
    if train.shard_base != "auto":
        return [train.shares_base]
    # it has not run on GPUs yet: there it is proposed, and taken when it is asked for
    allowed = train.can_shard_base and demand.processes > 1 and demand.kind == "cpu"
    return [False, True] if allowed else [False]
