"""The adapter that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from giraffe_cli.config.base import Section

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraConfig(Section):
    """The adapter that is trained."""

    rank: int = Field(default=16, ge=1)
    """Rank r of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """The update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the down-projection."""
    b_rate: float = Field(default=1.0, gt=0)
    """Rate of the up-projections B, in learning rates: LoRA+ (arXiv:2402.12354) takes 16, with a
    lower `learning_rate`."""
    targets: list[str] = Field(default_factory=lambda: list(LORA_TARGETS), min_length=1)
    """Module names that get an adapter; each must match something."""
    use_rslora: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Train the norm of every output row beside the direction (DoRA)."""
    init_lora_weights: Literal["default", "pissa"] = "default"
    """pissa: start from the largest singular directions of each weight, and train those."""
    also_train: list[Literal["embeddings", "norms"]] = Field(default_factory=list)
    """Trained whole beside the adapter, as LongLoRA does; tied weights stay tied."""
