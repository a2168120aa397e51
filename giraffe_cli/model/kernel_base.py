"""What an attention kernel is, and the documents that it tells apart.

Legend of shapes: B batch, H heads, K key/value heads, S tokens, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor]
"""Of query, key and value, in their shapes."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed row begin, on the device that attends."""

    cu_seqlens: Tensor
    """[documents + 1] int32."""
    lengths: tuple[int, ...]
    """Tokens of each."""
    keys: Documents | None = None
    """The same of the keys, where they are more than the queries: of a document's Q queries and
    N keys the queries are the last, and the mask is lower-right causal."""

    @property
    def of_keys(self) -> Documents:
        """Where the documents' keys begin."""
        return self.keys or self

    @property
    def longest(self) -> int:
        """Tokens."""
        return max(self.lengths)

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Documents | None:
        """Of a row of documents of `lengths`; None where there is one."""
        return None if len(lengths) < 2 else cls.tiling(lengths, device)

    @classmethod
    def tiling(
        cls, lengths: tuple[int, ...], device: torch.device, past: int | None = None
    ) -> Documents:
        """Of a row of documents of `lengths`, be it one; given `past`, the first has so many keys
        before its queries."""
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
        keys = None
        if past is not None:
            keys = cls.tiling((lengths[0] + past, *lengths[1:]), device)
        return cls(ends.to(device, non_blocking=True), tuple(lengths), keys)


@dataclass(frozen=True)
class Inputs:
    """What is attended with."""

    query: Tensor
    """[B, H, S, D]."""
    key: Tensor
    """[B, K, S, D], as `value`; more of them where documents say so."""
    value: Tensor
    scale: float | None = None
    """Of the scores; None: 1 / sqrt(D)."""
    documents: Documents | None = None
    """Of a packed row; None: one."""

    def __iter__(self) -> Iterator[Tensor]:
        """Query, key and value."""
        return iter((self.query, self.key, self.value))


class AbstractKernel(ABC):
    """Upper-left causal attention without dropout, lower-right where documents say of more keys;
    K divides H."""

    takes_documents = False
    """Whether it tells several documents of a row apart in one call."""

    @abstractmethod
    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(output [B, H, S, D], log-sum-exp in a shape of the kernel's own), no gradient."""

    @abstractmethod
    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        """The gradients, from what `forward` gave and the output's gradient."""
