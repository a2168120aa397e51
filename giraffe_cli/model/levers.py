"""How a training step is fitted into memory: settings that change bytes, not what is learnt.

From the fastest to the smallest, each exact up to the order of float sums (and to which dropout
masks a tile draws, where there is dropout):

    loss_chunk      logits of so many tokens at a time
    checkpointing   none → attention (layers recomputed, attention output kept) → full
    attention_layers  the last so many layers' attention output is kept
    whole_layers    the last so many layers are not recomputed at all
    offload         layer inputs wait on the device → in host memory → in a file
    offload_layers  the first so many layers' inputs wait there, the others' on the device
    mlp_tile        tokens that pass through an MLP at a time while a layer is recomputed
    projection_tile  tokens that are projected for attention at a time (`model/tiled.py`)
    head_groups     heads then attend in so many groups, one after the other
    fused           a layer's projections taken together (`model/fused.py`)
    shard_base      the base's weights shared out over the processes (`model/sharded.py`)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from giraffe_cli.config.train import TrainConfig

Checkpointing = Literal["none", "attention", "full"]
Offload = Literal["none", "host", "disk"]


@dataclass(frozen=True)
class Levers:
    """The settings in force, every `auto` resolved (`plan/ladder.py` resolves them).

    Small ones cost no time that can be measured on a CPU: d 256, 2 layers, vocabulary 32,000, a
    step over 8,192 tokens takes 7.4 CPU-seconds and adds 331 MB with the defaults (196 MB fused and
    projected by tiles); 7.5 and 831 MB with neither tiles nor small chunks, 7.3 and 901 MB with all
    activations kept.
    """

    checkpointing: Checkpointing = "attention"
    offload: Offload = "none"
    mlp_tile: int = 1024
    """Tokens; 0: the whole window at once."""
    loss_chunk: int = 256
    """Tokens."""
    offload_layers: int = 0
    """0: all of them."""
    attention_layers: int = 0
    """Whose attention output is kept, from the last; 0: of all of them."""
    fused: bool = False
    shard_base: bool = False
    projection_tile: int = 0
    """Tokens; 0: the whole window at once."""
    head_groups: int = 1
    """Of equally many key heads. Under a `projection_tile`."""
    whole_layers: int = 0
    """Layers from the last that are not recomputed, while the others are."""

    @classmethod
    def asked_for(cls, config: TrainConfig) -> Levers:
        """What `config` says; where it leaves the choice (`auto`), what suits most machines."""
        given: dict[str, Any] = {
            name: 0 if value == "none" and name.endswith("_tile") else value
            for name in (
                *("checkpointing", "attention_layers", "offload", "offload_layers"),
                *("mlp_tile", "projection_tile", "loss_chunk", "head_groups", "whole_layers"),
            )
            if (value := getattr(config, name)) != "auto"
        }
        fused = config.fused_layers == "on"
        return cls(**given, fused=fused, shard_base=config.shares_base)

    @property
    def sentence(self) -> str:
        """`layers recomputed but for their attention; loss by 1,024 tokens`."""
        recomputed = {
            "none": "activations kept",
            "attention": "layers recomputed but for their attention",
            "full": "layers recomputed",
        }
        if self.attention_layers:
            recomputed["attention"] += f" in the last {self.attention_layers}"
        if self.whole_layers and self.checkpointing != "none":
            recomputed[self.checkpointing] += f", the last {self.whole_layers} kept whole"
        some = f" of the first {self.offload_layers} layers" if self.offload_layers else ""
        waiting = {"none": "", "host": f", inputs{some} in host memory"}
        waiting["disk"] = f", inputs{some} on disk"
        is_tiled = self.mlp_tile and self.checkpointing != "none"
        tiles = f"; MLP by {self.mlp_tile:,} tokens" if is_tiled else ""
        if self.projection_tile and self.checkpointing != "none":
            tiles += f"; projections by {self.projection_tile:,} tokens"
            tiles += f", heads in {self.head_groups} groups" if self.head_groups > 1 else ""
        fused = "; projections fused" if self.fused else ""
        sharded = "; base shared out over the processes" if self.shard_base else ""
        return (
            f"{recomputed[self.checkpointing]}{waiting[self.offload]}{tiles}; "
            f"loss by {self.loss_chunk:,} tokens{fused}{sharded}"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields; `Levers(**value)` reads them."""
        return asdict(self)
