"""The ramp over pair indices that the YaRN family shares, and its attention factor.

    low, high = floor corr(fast), ceil corr(slow), clamped to [0, d-1]
    ramp_i = clamp((i - low) / (high - low), 0, 1)     0: turns often, 1: turns seldom
    attention(s, mscale) = 0.1 · mscale · ln s + 1

corr(n) is the pair that turns n times in the native window (`Head.pair_turning`).
d = 128, base 1e4, L0 = 4096: `ramp_ends(head, 32, 1)` → (20, 46).
"""

from __future__ import annotations

import math

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import FloatArray, Head


def ramp_ends(
    head: Head, fast: float, slow: float, *, truncate: bool = True
) -> tuple[float, float]:
    """Pair indices `(low, high)`: before `low` pairs turn more than `fast` times in the native
    window, from `high` on less than `slow` times; `truncate` rounds both outwards.

    Raises:
        InvalidInput: no ramp is left (transformers would then divide the wrong end).
    """
    low, high = head.pair_turning(fast), head.pair_turning(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head.head_dim - 1)
    if high < low:
        turns = head.turns()
        raise InvalidInput(
            f"{slow:g} and {fast:g} turns leave no ramp: in {head.original_max_position_embeddings}"
            f" tokens the pairs turn {turns[-1]:.3g} to {turns[0]:.3g} times",
            "choose turns that some pairs make",
        )
    return low, high


def ramp(head: Head, low: float, high: float) -> FloatArray:
    """`[head_dim/2]` 0 up to pair `low`, 1 from pair `high`, linear between."""
    # The authors' guard against a ramp of no width.
    width = high - low if high != low else 0.001
    return np.clip((np.arange(head.head_dim // 2, dtype=np.float64) - low) / width, 0.0, 1.0)


def sharpening(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention factor: 0.1 · mscale · ln s + 1; 1 where nothing is extended."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0
