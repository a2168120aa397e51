"""Next-token loss from hidden states without ever holding all logits.

The logits of a 16k window over a 128k vocabulary are 8 GB in float32, and their gradient as much
again. Here `chunk` tokens are projected at a time and the gradient with respect to the hidden
states is formed on the spot (softmax minus one-hot, times the head), so that the backward pass
needs no logits and no recomputation: two products with the head when it is frozen, three when it
trains. Peak memory beyond inputs and gradients: chunk · V · 4 bytes, half as much again in 16
bits.

    chunked_nll(hidden [n, d], weight [V, d], labels [n], chunk=1024)  → sum of nats, a scalar
    weighted_nll(..., weigh)    → sum of weight times nats, and the two sums by themselves
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.pointwise import compiled_on

IGNORED = -100

Weigh = Callable[[Tensor, int], Tensor]
"""Nats `[c]` of the targets from the n-th on, and n → what each counts, `[c]`."""


def chunked_nll(hidden: Tensor, lm_head_weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """SUM over labels ≠ -100 of the negative log-likelihood in nats, differentiable.

    Args:
        hidden: [n, d] final hidden states; `labels[t]` is what `hidden[t]` predicts. Products are
            taken in their dtype.
        lm_head_weight: [V, d], frozen or trained; its gradient has its own dtype.
        labels: [n] int64; -100 is not counted.
        chunk: tokens whose logits exist at one time.

    Returns:
        A scalar, float32 (float64 for float64 inputs).
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or lm_head_weight.requires_grad):
        return token_nll(hidden, lm_head_weight, labels, chunk).sum()
    return weighted_nll(hidden, lm_head_weight, labels, chunk)[0]


def weighted_nll(
    hidden: Tensor, lm_head_weight: Tensor, labels: Tensor, chunk: int, weigh: Weigh | None = None
) -> tuple[Tensor, Tensor]:
    """SUM over labels ≠ -100 of weight times nats, and `[2]` float64 without gradient beside it:
    the sum of the nats alone and that of the weights.

    Arguments as of `chunked_nll`. The weights are of the nats just computed, chunk by chunk, and
    constants to the gradient; without `weigh` each is 1.
    """
    total, told = _ChunkedNll.apply(hidden, lm_head_weight, labels, chunk, weigh)  # type: ignore[no-untyped-call]
    return total, told


@torch.no_grad()
def token_nll(hidden: Tensor, lm_head_weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
    """[n] nats of every label, 0 where it is -100; float32 (float64 for float64). No gradient."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    blocks = _Blocks(min(chunk, len(hidden)), lm_head_weight.to(hidden.dtype), wide)
    parts = [
        _nll(blocks.logits(rows), kept)[0]
        for rows, kept in zip(torch.split(hidden, chunk), torch.split(labels, chunk), strict=True)
    ]
    return torch.cat(parts)


class _Blocks:
    """Room for the logits of one chunk, used again for each: blocks that come and go among small
    tensors cut the C library's heap into holes, 200 MB for chunks of 33."""

    def __init__(self, chunk: int, weight: Tensor, wide: torch.dtype) -> None:
        self.weight = weight
        self.narrow = weight.new_empty(chunk, len(weight))
        is_wide = weight.dtype == wide
        self.wide = self.narrow if is_wide else torch.empty_like(self.narrow, dtype=wide)

    def logits(self, rows: Tensor) -> Tensor:
        """[rows, V], at least float32."""
        torch.mm(rows, self.weight.t(), out=self.narrow[: len(rows)])
        wide = self.wide[: len(rows)]
        return wide if self.wide is self.narrow else wide.copy_(self.narrow[: len(rows)])

    def narrowed(self, slope: Tensor) -> Tensor:
        """`slope`, which lies in the wide block, in the weight's type."""
        if self.wide is self.narrow:
            return slope
        return self.narrow[: len(slope)].copy_(slope)


class _ChunkedNll(torch.autograd.Function):
    """Forms the gradients in the forward; the backward scales them by the incoming gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, weigh: Weigh | None
    ) -> tuple[Tensor, Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        accumulator = torch.promote_types(hidden.dtype, torch.float32)
        ctx.weight_dtype, weight = weight.dtype, weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=accumulator) if wants_weight else None
        total = hidden.new_zeros((), dtype=torch.float64)
        told = hidden.new_zeros(2, dtype=torch.float64)
        slope_of = _slope_function(min(chunk, len(hidden)), weight, accumulator)
        for start in range(0, len(hidden), chunk):
            rows, kept = hidden[start : start + chunk], labels[start : start + chunk]
            nll, slope = slope_of(rows, kept)
            counts = (kept != IGNORED).to(nll.dtype)
            if weigh is not None:
                counts *= weigh(nll, start)
            total += (counts * nll).sum(dtype=torch.float64)
            told += torch.stack([nll.sum(dtype=torch.float64), counts.sum(dtype=torch.float64)])
            if grad_hidden is not None:
                below = grad_hidden[start : start + chunk]
                torch.mm(slope, weight, out=below)
                if weigh is not None:
                    below *= counts.unsqueeze(-1)
            if grad_weight is not None:
                scaled = rows if weigh is None else rows * counts.unsqueeze(-1).to(rows.dtype)
                grad_weight += slope.t() @ scaled
        ctx.chunk = chunk
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(told)
        return total.to(accumulator), told

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0]
        for_hidden = None if grad_hidden is None else _scaled(grad_hidden, scale, ctx.chunk)
        for_weight = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        return for_hidden, for_weight, None, None, None


def _scaled(gradient: Tensor, scale: Tensor, chunk: int) -> Tensor:
    """`gradient` [n, d] times a scalar that stays as wide as it is: rounded to bfloat16, the 1/6141
    of a mean over targets makes all gradients below the head 0.15 % too large, not the head's."""
    if gradient.dtype == scale.dtype:
        return gradient * scale
    scaled = torch.empty_like(gradient)
    for start in range(0, len(gradient), chunk):
        rows = slice(start, start + chunk)
        scaled[rows] = gradient[rows].to(scale.dtype) * scale
    return scaled


Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Rows and labels → nats `[chunk]` and ∂nats/∂logits `[chunk, V]` in the weight's type."""


def _slope_function(chunk: int, weight: Tensor, wide: torch.dtype) -> Slope:
    """On a GPU in 16 bits one compiled pass, which needs no wide block: 3 reads and a write of two
    bytes a logit where the operators below make a dozen of four."""
    one_pass = compiled_on(weight.device, _one_pass)
    if weight.dtype != wide and one_pass is not None:
        return lambda rows, labels: one_pass(rows @ weight.t(), labels)
    blocks = _Blocks(chunk, weight, wide)

    def slope_of(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        nll, slope = _nll_and_slope(blocks.logits(rows), labels)
        return nll, blocks.narrowed(slope)

    return slope_of


def _one_pass(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `_nll_and_slope`, of logits in 16 bits and as new tensors, for a compiler to fuse."""
    wide, is_ignored = logits.float(), (labels == IGNORED).unsqueeze(-1)
    picked = labels.clamp(min=0).unsqueeze(-1)
    top = wide.amax(-1, keepdim=True)
    shares = (wide - top).exp()
    total = shares.sum(-1, keepdim=True)
    nll = total.log() + top - wide.gather(-1, picked)
    is_label = torch.arange(logits.shape[-1], device=logits.device) == picked
    slope = (shares / total - is_label.float()).masked_fill(is_ignored, 0.0)
    return nll.masked_fill(is_ignored, 0.0).squeeze(-1), slope.to(logits.dtype)


def _nll_and_slope(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each label [chunk], and ∂nll/∂logits = softmax - one-hot [chunk, V], both zero where
    ignored; the slope is written over the logits, so that no second array of their size exists."""
    nll, total = _nll(logits, labels)
    picked = labels.clamp(min=0).unsqueeze(-1)
    slope = logits.div_(total).scatter_add_(-1, picked, torch.full_like(total, -1.0))
    return nll, slope.masked_fill_((labels == IGNORED).unsqueeze(-1), 0.0)


def _nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Nats of each label [chunk], zero where ignored, and [chunk, 1] the sum of what is written
    over the logits: exp(logit - the row's largest)."""
    picked = labels.clamp(min=0).unsqueeze(-1)
    top = logits.amax(-1, keepdim=True)
    at_label = logits.gather(-1, picked)
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    nll = (total.log() + top - at_label).squeeze(-1)
    return nll.masked_fill_(labels == IGNORED, 0.0), total
