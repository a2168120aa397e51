"""The optimiser: AdamW as YaRN and LongLoRA fine-tune; the rate is set by the loop.

Weight decay pulls matrices towards nought and leaves embeddings, norms and DoRA's magnitudes
alone: a rare token's embedding would decay without being trained, and a norm's place is not 0.
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


def make_optimizer(parameters: Mapping[str, Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over `parameters` by name, or with moments in 8 bits; those of tensors below 4,096
    elements stay in 32 bits (arXiv:2110.02861).

    Raises:
        InvalidInput: 8 bits without bitsandbytes.
    """
    groups = parameter_groups(parameters, config.weight_decay)
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": BETAS}
    if config.optimizer == "adamw":
        # on a GPU torch would take the root of every moment at once: a copy of all that is trained
        at_once = False if config.method == "full" else None
        return torch.optim.AdamW(groups, **settings, foreach=at_once)
    bitsandbytes = import_bitsandbytes(ADAMW_8BIT)
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(groups, **settings)
    return optimizer


def parameter_groups(parameters: Mapping[str, Tensor], decay: float) -> list[dict[str, Any]]:
    """With decay and without; a group that would be empty is left out."""
    decays = {
        name: _dimensions(p) > 1 and "embed_tokens" not in name for name, p in parameters.items()
    }
    groups = [
        {"params": [p for name, p in parameters.items() if decays[name] == kept], "weight_decay": w}
        for kept, w in ((True, decay), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: Tensor) -> int:
    """Of the whole weight, where this is a piece of it."""
    return len(parameter.place.shape) if isinstance(parameter, Piece) else parameter.ndim
