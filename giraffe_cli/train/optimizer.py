"""The optimiser: AdamW as YaRN and LongLoRA fine-tune; the rate is set by the loop.

Weight decay pulls matrices towards nought and leaves embeddings, norms and DoRA's magnitudes
alone: a rare token's embedding would decay without being trained, and a norm's place is not 0.

Up-projections and embeddings may have a rate of their own, as a factor of the loop's: `RATE` of
their group.

Source: LoRA+ (Hayou, Ghosh & Yu 2024, arXiv:2402.12354) for the rate of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.low_bits import ADAMW_8BIT, import_bitsandbytes
from giraffe_cli.model.pieces import Piece

BETAS = (0.9, 0.95)
EMBEDDINGS, UP = "embed_tokens", ".lora_B."
"""In the names of parameters."""
RATE = "rate"
"""Key of a group: its rate, in learning rates."""


def make_optimizer(parameters: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over `parameters` by name, or with moments in 8 bits; those of tensors below 4,096
    elements stay in 32 bits (arXiv:2110.02861).

    Raises:
        InvalidInput: 8 bits without bitsandbytes.
    """
    groups = parameter_groups(parameters, config)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS}
    if config.optimizer == "adamw":
        # on a GPU torch would take the root of every moment at once: a copy of all that is trained
        at_once = False if config.method == "full" else None
        return torch.optim.AdamW(groups, **settings, foreach=at_once)
    bitsandbytes = import_bitsandbytes(ADAMW_8BIT)
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **settings)
    return optimizer


def parameter_groups(parameters: Mapping[str, Tensor], config: TrainConfig) -> list[dict[str, Any]]:
    """Those that decay before those that do not, each by their rates; none is empty."""
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in parameters.items():
        stays = _dimensions(parameter) < 2 or EMBEDDINGS in name
        groups.setdefault((stays, _rate_of(name, config)), []).append(parameter)
    return [
        {"params": of_group, "weight_decay": 0.0 if stays else config.weight_decay, RATE: rate}
        for (stays, rate), of_group in sorted(groups.items(), key=lambda item: item[0])
    ]


def _rate_of(name: str, config: TrainConfig) -> float:
    """In learning rates."""
    if EMBEDDINGS in name:
        return config.embeddings_rate
    return config.lora.b_rate if UP in name else 1.0


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step; groups with a rate of their own get theirs of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE, 1.0)  # checkpoints of earlier versions have none


def _dimensions(parameter: Tensor) -> int:
    """Of the whole weight, where this is a piece of it."""
    return len(parameter.place.shape) if isinstance(parameter, Piece) else parameter.ndim
