"""LongCE: what a target counts is how much less surprising the long context makes it.

    weight = exp(nats given a short context - nats given the whole one), from floor to cap

(Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?", arXiv 2410.23771,
and PKU-ML/LongPPL, with a cap of 5 and a floor of 0.) Both are the model's own, as it is being
trained, the short one without dropout; the sum of weight times nats is divided by the number of
targets.

The weight depends on the target that comes: where tokens come with probability p, what makes the
loss smallest is not p but p·weight. A model learns to overrate what its context favours, and its
plain loss grows, more so where tokens that the context makes less likely hardly count. Weights that
are a function of the context alone, exp(KL(whole ‖ short)), do not do that, and helped calf nothing
(docs/results.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from giraffe_cli.model.loss import IGNORED
from giraffe_cli.train.data import Window
from giraffe_cli.train.setup import on_device
from giraffe_cli.train.short_context import cuts
from giraffe_cli.train.window_loss import WindowLoss


@dataclass(frozen=True)
class ContextGain:
    """What a target counts, from its nats given the whole context: a `Weigh` of the loss."""

    short: Tensor
    """[n] nats given a short context."""
    is_compared: Tensor
    """[n] bool: where there is a shorter context than the whole one; elsewhere the weight is 1."""
    cap: float
    floor: float

    def __call__(self, nats: Tensor, start: int) -> Tensor:
        """[c] weights of the targets from `start` on, whose whole context leaves `nats` [c]."""
        here = slice(start, start + len(nats))
        weights = (self.short[here].to(nats.dtype) - nats).exp().clamp(self.floor, self.cap)
        return torch.where(self.is_compared[here], weights, 1.0)


def short_nats(
    model: WindowLoss, window: Window, short_context: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of this process's slice of the window: `[slice]` nats of every target given a short context,
    and where that is shorter than the whole one. Without gradient and dropout.

    Every process of a group that shares windows or the base must call this together.
    """
    input_ids, labels, position_ids, _ = on_device(model, window, device)
    was_training = model.training
    model.eval()
    both = []
    for pieces in cuts(window.seq_lengths, short_context):
        taken = labels.masked_fill(~pieces.is_taken.to(device), IGNORED)
        both.append(model.nll_of_targets((input_ids, taken, position_ids, pieces.lengths)))
    model.train(was_training)
    (early, is_early), (late, is_late) = both
    return early + late, is_early | is_late
