"""LongCE: what a target counts is how much less surprising the long context makes it.

    longce             min(exp(nats given a short context - nats given the whole one), cap)
    longce-expected    min(exp(KL(given the whole one ‖ given a short one)), cap)

The first is of Fang et al., "What is Wrong with Perplexity for Long-context Language Modeling?",
arXiv 2410.23771, and PKU-ML/LongPPL, with a cap of 5. Its weight depends on the target that comes:
where tokens come with probability p, what makes it smallest is not p but p·weight, so a model
learns to overrate what its context favours, and its plain loss grows. The second is the mean of the
exponent over the model's own distribution, a function of the context alone, under which p is best.

Both distributions are the model's own, as it is being trained, the short one without dropout; the
sum of weight times nats is divided by the number of targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.loss import IGNORED, Chunk
from giraffe_cli.train.data import Window
from giraffe_cli.train.setup import on_device
from giraffe_cli.train.short_context import Pieces, cuts
from giraffe_cli.train.window_loss import WindowLoss

PARTS = 4
"""In so many parts a chunk's distributions are compared: each takes four blocks of its logits."""


class AbstractGain(ABC):
    """What targets count: a `Weigh` of the loss."""

    is_compared: Tensor
    """[n] bool: where there is a shorter context than the whole one; elsewhere the weight is 1."""
    cap: float

    @abstractmethod
    def nats(self, chunk: Chunk, rows: Tensor) -> Tensor:
        """[r] what the context gains the targets `rows` [r] of a chunk."""

    @torch.no_grad()
    def __call__(self, chunk: Chunk) -> Tensor:
        here = self.is_compared[chunk.start : chunk.start + len(chunk.nats)]
        weights, rows = torch.ones_like(chunk.nats), here.nonzero().squeeze(-1)
        weights[rows] = self.nats(chunk, rows).exp().clamp(max=self.cap).to(weights.dtype)
        return weights


@dataclass(frozen=True)
class ContextGain(AbstractGain):
    """How much likelier the whole context makes the target that there is."""

    short: Tensor
    """[n] nats given a short context."""
    is_compared: Tensor
    cap: float

    def nats(self, chunk: Chunk, rows: Tensor) -> Tensor:
        return self.short[chunk.start + rows] - chunk.nats[rows]


@dataclass(frozen=True)
class ExpectedGain(AbstractGain):
    """How much likelier it makes targets on average, by its own distribution: KL(whole ‖ short)."""

    short: Tensor
    """[n, d] hidden states given a short context."""
    is_compared: Tensor
    cap: float

    def nats(self, chunk: Chunk, rows: Tensor) -> Tensor:
        parts = torch.split(rows, max(1, len(chunk.nats) // PARTS))
        return torch.cat([self._divergence(chunk, part) for part in parts])

    def _divergence(self, chunk: Chunk, rows: Tensor) -> Tensor:
        given = chunk.hidden[rows], self.short[chunk.start + rows]
        whole, short = ((hidden @ chunk.head.t()).float().log_softmax(-1) for hidden in given)
        return (whole.exp() * (whole - short)).sum(-1)


def context_gain(
    model: WindowLoss, window: Window, config: TrainConfig, short_context: int, device: torch.device
) -> AbstractGain:
    """What the targets of this process's slice of a window gain by their context, by two passes
    over its pieces. Without gradient and dropout.

    Every process of a group that shares windows or the base must call this together.
    """
    was_training = model.training
    model.eval()
    early, late = (
        _given_pieces(model, window, pieces, config.loss == "longce-expected", device)
        for pieces in cuts(window.seq_lengths, short_context)
    )
    model.train(was_training)
    is_compared = early.is_taken | late.is_taken
    if config.loss == "longce":
        return ContextGain(early.found + late.found, is_compared, config.weight_cap)
    short = torch.where(early.is_taken.unsqueeze(-1), early.found, late.found)
    return ExpectedGain(short, is_compared, config.weight_cap)


class _Given(NamedTuple):
    """By one cut, of this process's slice."""

    found: Tensor
    """[slice] nats of targets that are taken, else 0; or [slice, d] hidden states."""
    is_taken: Tensor
    """[slice] bool."""


@torch.no_grad()
def _given_pieces(
    model: WindowLoss, window: Window, pieces: Pieces, keeps_hidden: bool, device: torch.device
) -> _Given:
    input_ids, labels, position_ids, _ = on_device(model, window, device)
    taken = labels.masked_fill(~pieces.is_taken.to(device), IGNORED)
    hidden, taken = model.hidden(input_ids, taken, position_ids, pieces.lengths)
    is_taken = taken != IGNORED
    if keeps_hidden:
        return _Given(hidden, is_taken)
    nats = model.token_nll(hidden[is_taken], taken[is_taken])
    return _Given(nats.new_zeros(len(taken)).masked_scatter(is_taken, nats), is_taken)
