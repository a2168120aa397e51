"""How keys and values of many tokens are written small: 16 bits, or 8 or 4 bits in groups.

    4 bits, a group of 64 tokens      x ≈ low + code · scale,   code in 0 .. 15
        keys     one (low, scale) a channel of the group: a few channels are large in every token
        values   one (low, scale) a token: they have no such channels

    bytes a token and head of width 64:   bfloat16 256   int8 136   int4 72 (0.28 of it)

This is the grouping of KIVI (Liu et al. 2024, arXiv:2402.02750); KVQuant (Hooper et al. 2024,
arXiv:2401.18079) finds the same for keys. transformers' QuantizedCache groups both alike, writes
all past tokens anew for every 128 (with chunks of 256 a random model kept 64 % of its top tokens
under quanto's 4 bits), has no 8 bits with quanto, and is not cut when `crop` asks it to be.

B batch, K key/value heads, N tokens, D head_dim, G groups of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 64
"""Tokens that are written together; 32 takes 0.31 of bfloat16's bytes instead of 0.28."""


class AbstractFormat(ABC):
    """Keys and values to tensors and back."""

    @abstractmethod
    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Tensors `[B, K, G, ...]` of keys and values `[B, K, N, D]`, N whole groups."""

    @abstractmethod
    def read(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, K, N, D]` in `dtype`; `parts` may be cut along G."""


@dataclass(frozen=True)
class Cast(AbstractFormat):
    """As numbers of another type."""

    dtype: torch.dtype

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return _groups(keys).to(self.dtype), _groups(values).to(self.dtype)

    def read(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys, values = (part.flatten(2, 3).to(dtype) for part in parts)
        return keys, values


@dataclass(frozen=True)
class Grouped(AbstractFormat):
    """As codes of `bits` (8 or 4), keys by channel and values by token."""

    bits: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        return *self._code(_groups(keys), 3), *self._code(_groups(values), 4)

    def read(self, parts: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        keys, values = parts[:3], parts[3:]
        return self._decode(keys, dtype), self._decode(values, dtype)

    def _code(self, groups: Tensor, over: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, scale and low of `[B, K, G, 64, D]`, one scale for all along dimension `over`.

        Codes are taken against scale and low as they are stored, so their rounding adds no error
        beyond the last code's.
        """
        stored = groups.dtype if groups.element_size() == 2 else torch.float16
        wide = groups.float()
        low = wide.amin(over, keepdim=True).to(stored)
        span = wide.amax(over, keepdim=True) - low.float()
        scale = (span / (2**self.bits - 1)).to(stored)
        # a group of equal numbers, or of numbers so small that their scale is none
        step = torch.where(scale == 0, torch.ones_like(scale), scale).float()
        codes = ((wide - low.float()) / step).round_().clamp_(0, 2**self.bits - 1)
        return self._packed(codes.to(torch.uint8)), scale, low

    def _packed(self, codes: Tensor) -> Tensor:
        """Two codes a byte: token n of a group beside token n + 32."""
        if self.bits == 8:
            return codes
        first, second = codes.chunk(2, 3)
        return first | (second << 4)

    def _decode(self, coded: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """`[B, K, N, D]` of codes `[B, K, G, 64 or 32, D]`, scale and low."""
        codes, scale, low = coded
        batch, heads, groups, _, width = codes.shape
        on_cpu = codes.device.type == "cpu"
        # A CPU is four times as fast in float32, and a GPU computes addcmul in it.
        middle = torch.float32 if on_cpu else dtype
        wide = codes.new_empty(batch, heads, groups, GROUP, width, dtype=middle)
        if self.bits == 8:
            wide.copy_(codes)
        else:
            wide[:, :, :, : GROUP // 2] = codes & 15
            wide[:, :, :, GROUP // 2 :] = codes >> 4
        if on_cpu:
            wide.mul_(scale.float()).add_(low.float())
        else:
            torch.addcmul(low.to(dtype), wide, scale.to(dtype), out=wide)
        return wide.view(batch, heads, groups * GROUP, width).to(dtype)


FORMATS: dict[str, AbstractFormat] = {
    "bfloat16": Cast(torch.bfloat16),
    "int8": Grouped(8),
    "int4": Grouped(4),
}
"""By the name `--kv-dtype` takes."""


def _groups(states: Tensor) -> Tensor:
    batch, heads, tokens, width = states.shape
    return states.reshape(batch, heads, tokens // GROUP, GROUP, width)
