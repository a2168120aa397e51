"""Several processes share one window: each holds a slice of its tokens, and of its heads to attend.

DeepSpeed-Ulysses (Jacobs et al. 2023): everything but attention treats tokens alone, so a process
computes it for S/N of the S tokens; around attention two all-to-all exchanges turn slices of tokens
with all heads into all tokens with slices of heads, and back:

    [1, H, S/N, D]  →  to_heads  →  [1, H/N, S, D]  →  attention  →  [1, S, H/N, D]  →  to_tokens

so documents, masks and positions are those of one process, exactly. Unlike ring attention it takes
any mask; N must divide H. Where it does not, `model/gathered_keys.py` shares by keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.collectives import all_to_all


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share this one's windows."""

    group: Any
    """torch's process group."""
    rank: int
    """Place of this process in it: which slice of the tokens it holds."""
    size: int

    def padded(self, num_tokens: int) -> int:
        """Length of a row of `num_tokens` that all processes hold equally much of."""
        return -(-num_tokens // self.size) * self.size

    def pieces(self, num_tokens: int) -> list[tuple[int, int]]:
        """Begin and end of what this process holds of the padded row, in order."""
        length = self.padded(num_tokens) // self.size
        return [(self.rank * length, (self.rank + 1) * length)]

    def shared(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Key and value heads repeated as far as each process needs some of its own.

        Query head h attends to key head h // (H / K): with K a multiple of N they split as they
        are; with N a multiple of K each is repeated N / K times; else once per query head.
        """
        heads, kept = query.shape[1], key.shape[1]
        if kept % self.size == 0:
            return query, key, value
        repeats = self.size // kept if self.size % kept == 0 else heads // kept
        return query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)

    def to_heads(self, tokens: Tensor) -> Tensor:
        """[1, H, S/N, D] of this process's tokens → [1, H/N, S, D] of its heads."""
        _, heads, length, width = tokens.shape
        sent = tokens[0].reshape(self.size, heads // self.size, length, width)
        received = self._exchange(sent)  # [N sources, H/N, S/N, D]
        return received.transpose(0, 1).reshape(1, heads // self.size, -1, width)

    def to_tokens(self, heads: Tensor) -> Tensor:
        """[1, S, H/N, D] of this process's heads → [1, S/N, H, D] of its tokens."""
        _, num_tokens, kept, width = heads.shape
        sent = heads[0].reshape(self.size, num_tokens // self.size, kept, width)
        received = self._exchange(sent)  # [N sources of heads, S/N, H/N, D]
        return received.transpose(0, 1).reshape(1, num_tokens // self.size, -1, width)

    def _exchange(self, parts: Tensor) -> Tensor:
        """[N, ...] → [N, ...]: part r goes to process r."""
        exchanged: Tensor = _AllToAll.apply(parts, self.group)  # type: ignore[no-untyped-call]
        return exchanged


class _AllToAll(torch.autograd.Function):
    """Equal parts between all processes; the gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return all_to_all(parts, group)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return all_to_all(grad_outputs[0], ctx.group), None
