"""What a step makes smaller, as a function of one window.

objective = make_objective(config, native_length)
objective.of_window(model, window, device)      → WindowTold
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.train.data import Window
from giraffe_cli.train.long_ce import ContextGain, short_nats
from giraffe_cli.train.setup import on_device
from giraffe_cli.train.window_loss import WindowLoss


@dataclass(frozen=True)
class WindowTold:
    """Of one window, or of this process's slice of it; sums over its targets, scalars."""

    minimised: Tensor
    """What the weights are moved by, with its gradient."""
    nats: Tensor
    weights: Tensor
    """What the targets counted."""


class AbstractObjective(ABC):
    """What is minimised, per window."""

    @abstractmethod
    def of_window(self, model: WindowLoss, window: Window, device: torch.device) -> WindowTold:
        """Every process of a group that shares windows must call this with the same ones."""


class CrossEntropy(AbstractObjective):
    """Every target counts alike."""

    def of_window(self, model: WindowLoss, window: Window, device: torch.device) -> WindowTold:
        return _told(*model.weighted(on_device(model, window, device)))


@dataclass(frozen=True)
class LongCE(AbstractObjective):
    """Every target counts as much as the long context gains it (`train/long_ce.py`)."""

    short_context: int
    """Tokens."""
    weight_cap: float
    weight_floor: float

    def of_window(self, model: WindowLoss, window: Window, device: torch.device) -> WindowTold:
        gain = None
        # passes of a base that is shared out are every process's, whatever its own window needs
        if max(window.seq_lengths) > self.short_context or model.base:
            short = short_nats(model, window, self.short_context, device)
            gain = ContextGain(*short, self.weight_cap, self.weight_floor)
        return _told(*model.weighted(on_device(model, window, device), gain))


def _told(minimised: Tensor, sums: Tensor) -> WindowTold:
    return WindowTold(minimised, sums[0], sums[1])


def make_objective(config: TrainConfig, native_length: int) -> AbstractObjective:
    """What `config` says, for a base of `native_length`."""
    if config.loss == "ce":
        return CrossEntropy()
    short = config.short_context_of(native_length)
    return LongCE(short, config.weight_cap, config.weight_floor)
