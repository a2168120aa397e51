"""cuDNN's attention: 1.6 to 1.9 times FlashAttention-2 on Hopper (`scripts/bench_gpu.py`).

It prepares every new shape for about half a second, and documents come in every length. So a
document is lengthened to the next of eight lengths an octave: what is added stands behind it, where
causal attention does not look, and gets no gradient. Documents shorter than `LONG` go to
FlashAttention-2 together in one call:

    lengths  9000  700  5000  300
             9216       5120            cuDNN, one by one
                   700        300       FlashAttention-2, as one row
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from giraffe_cli.model.flash_kernel import FlashKernel
from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Grads

LONG = 2048
"""Tokens from which a document is worth a call of its own."""
PER_OCTAVE = 8


class CudnnKernel(AbstractKernel):
    """Windows of one document as they are, several as above."""

    takes_documents = True

    def __init__(self) -> None:
        self.flash = FlashKernel()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor]:
        if documents is None:
            return _forward(query, key, value, scale)
        out = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:3], dtype=torch.float32)
        for start, length, longer in _long(documents.lengths):
            q, k, v = (_part(tensor, start, length, longer) for tensor in (query, key, value))
            found, sums = _forward(q, k, v, scale)
            out[:, :, start : start + length] = found[:, :, :length]
            log_sum[:, :, start : start + length] = sums[:, :, :length, 0]
        short, places = _short(documents, query.device)
        if places is not None:
            q, k, v = (tensor.index_select(2, places) for tensor in (query, key, value))
            found, sums = self.flash.forward(q, k, v, scale, short)
            out.index_copy_(2, places, found)
            log_sum.index_copy_(2, places, sums.view(1, *sums.shape[-2:]))
        return out, log_sum

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        log_sum: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> Grads:
        if documents is None:
            return _backward(grad, query, key, value, out, log_sum, scale)
        grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        known = grad, query, key, value, out
        for start, length, longer in _long(documents.lengths):
            g, q, k, v, o = (_part(tensor, start, length, longer) for tensor in known)
            sums = _part(log_sum[..., None], start, length, longer)
            found = _backward(g, q, k, v, o, sums, scale)
            for whole, part in zip(grads, found, strict=True):
                whole[:, :, start : start + length] = part[:, :, :length]
        short, places = _short(documents, query.device)
        if places is not None:
            g, q, k, v, o = (tensor.index_select(2, places) for tensor in known)
            sums = log_sum[0].index_select(1, places)
            for whole, part in zip(
                grads, self.flash.backward(g, q, k, v, o, sums, scale, short), strict=True
            ):
                whole.index_copy_(2, places, part)
        return grads


def lengthened(length: int) -> int:
    """The next of `PER_OCTAVE` lengths an octave: 2048, 2304, 2560, …, 4096, 4608, …"""
    step = (1 << (length.bit_length() - 1)) // PER_OCTAVE
    return -(-length // step) * step


def _long(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(start, length, lengthened) of every long document."""
    found, start = [], 0
    for length in lengths:
        if length >= LONG:
            found.append((start, length, lengthened(length)))
        start += length
    return found


def _short(documents: Documents, device: torch.device) -> tuple[Documents | None, Tensor | None]:
    """The short documents, and where their tokens are; two Nones where there are none."""
    lengths = tuple(length for length in documents.lengths if length < LONG)
    if not lengths:
        return None, None
    is_short = torch.tensor([length < LONG for length in documents.lengths])
    every = is_short.repeat_interleave(torch.tensor(documents.lengths))
    places = every.nonzero()[:, 0].to(device, non_blocking=True)
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    return Documents(ends.to(device, non_blocking=True), lengths), places


def _part(tensor: Tensor, start: int, length: int, longer: int) -> Tensor:
    """[B, H, longer, D] of [B, H, S, D], zeros behind the document; [B, S, H, D] in memory."""
    rows = tensor[:, :, start : start + length].transpose(1, 2)
    return functional.pad(rows, (0, 0, 0, 0, 0, longer - length)).transpose(1, 2)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """(output, log-sum-exp [B, H, S, 1])."""
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, True, False, scale=scale
    )
    return found[0], found[1]


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    scale: float | None,
) -> Grads:
    size = query.shape[2]
    drawn = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout: not read
    grads: Grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
        *(grad, query, key, value, out, log_sum, drawn, drawn),
        *(None, None, None, size, size, 0.0, True),
        scale=scale,
    )
    return grads
