"""Several processes share one window by its keys: each attends with its own tokens to all of them.

The context parallelism of Llama 3 (Llama Team 2024, arXiv:2407.21783, §3.3.2): keys and values are
few where heads share them, so every process gathers them whole and computes attention for the
queries it holds. Any number of processes and any documents; heads need not divide. Later queries
see more keys, so of 2N chunks a process holds one from the front and its mirror image:

    4 processes     chunk   0 1 2 3 4 5 6 7
                  process   0 1 2 3 3 2 1 0

A chunk is the tail of what it attends to, from the beginning of the document that it begins in:

    keys       a a a|a a b|b        first piece: 2 queries, 5 keys, lower-right causal
    queries          a a b|         second:      1 query,   1 key

Legend of shapes: H heads, K key/value heads, S tokens of the window, D head_dim, N processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.collectives import all_gather, all_to_all
from giraffe_cli.model.flash import AttentionTape, attend
from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Inputs
from giraffe_cli.model.sequence_parallel import SequenceGroup


@dataclass(frozen=True)
class Tail:
    """A chunk of queries, and which of the row's keys it sees some of."""

    first_key: int
    """Where the document begins that the chunk begins in."""
    end: int
    """End of the chunk, and of its keys."""
    documents: Documents
    """Of the chunk, with those of its keys."""


@dataclass(frozen=True)
class KeyGroup(SequenceGroup):
    """The processes that share this one's windows, each of two chunks."""

    def padded(self, num_tokens: int) -> int:
        """Length of a row of `num_tokens` in 2N equal chunks."""
        chunks = 2 * self.size
        return -(-num_tokens // chunks) * chunks

    def pieces(self, num_tokens: int) -> list[tuple[int, int]]:
        """Begin and end of both chunks."""
        chunk = self.padded(num_tokens) // (2 * self.size)
        places = (self.rank, 2 * self.size - 1 - self.rank)
        return [(place * chunk, (place + 1) * chunk) for place in places]

    def tails(self, lengths: Sequence[int], device: torch.device) -> list[Tail]:
        """This process's chunks of a row of documents of `lengths`, which are padded already."""
        return [_tail(lengths, start, end, device) for start, end in self.pieces(sum(lengths))]

    def gathered(self, mine: Tensor) -> Tensor:
        """[1, K, S/N, D] of this process's chunks → [1, K, S, D] of the row."""
        whole: Tensor = _Gathered.apply(mine, self)  # type: ignore[no-untyped-call]
        return whole


def attend_to_all(
    group: KeyGroup,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    kernel: AbstractKernel,
    tails: Sequence[Tail],
    tape: AttentionTape | None,
) -> Tensor:
    """[1, H, S/N, D] of this process's queries to the row's keys; query [1, H, S/N, D], key and
    value [1, K, S/N, D]."""
    both = group.gathered(torch.cat([key, value], 1))
    keys, values = torch.split(both, key.shape[1], 1)
    queries = torch.split(query, query.shape[2] // len(tails), 2)
    attended = []
    for mine, tail in zip(queries, tails, strict=True):
        seen = slice(tail.first_key, tail.end)
        given = Inputs(mine, keys[:, :, seen], values[:, :, seen], scaling, tail.documents)
        attended.append(attend(given, kernel, tape))
    return torch.cat(attended, 2)


def _tail(lengths: Sequence[int], start: int, end: int, device: torch.device) -> Tail:
    pieces: list[int] = []
    first_key = begin = 0
    for length in lengths:
        piece = min(end, begin + length) - max(start, begin)
        if piece > 0:
            first_key = first_key if pieces else begin
            pieces.append(piece)
        begin += length
    past = max(0, start - first_key)
    return Tail(start - past, end, Documents.tiling(tuple(pieces), device, past))


class _Gathered(torch.autograd.Function):
    """All processes' chunks in the row's order; the gradient is the sum over all that used them."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: KeyGroup) -> Tensor:
        ctx.group = group
        sent = mine.contiguous()
        received = sent.new_empty(group.size * sent.numel())
        all_gather(sent.view(-1), received, group.group).wait()
        _, heads, length, width = sent.shape
        halves = received.view(group.size, heads, 2, length // 2, width)
        chunks = torch.cat([halves[:, :, 0], halves[:, :, 1].flip(0)])  # [2N, K, S/2N, D]
        return chunks.transpose(0, 1).reshape(1, heads, -1, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        group: KeyGroup = ctx.group
        _, heads, num_tokens, width = grad_outputs[0].shape
        chunks = grad_outputs[0].view(heads, 2 * group.size, -1, width).transpose(0, 1)
        front, back = torch.split(chunks, group.size)
        parts = torch.stack([front, back.flip(0)], 2)  # [N, K, 2, S/2N, D]
        summed = all_to_all(parts, group.group).sum(0, dtype=torch.float32)
        return summed.to(parts.dtype).view(1, heads, num_tokens // group.size, width), None
