"""Giraffe's truncated basis: pairs that did not complete a turn are slowed to one speed or none.

    1. θ_i / scale          2. · (1 - i/(d/2))^power          3. truncation of what came out:
    b = 2π/P    a = b/8    ρ = 2π/(16 P)           P = truncate_pos, the native window unless given
    θ ≥ b: θ          a ≤ θ < b: ρ          θ < a: 0, written as θ/1e9

Truncation comes last, so scale and power move pairs across its cut-offs. Zero has no divisor and no
JSON, so such a pair turns a thousand million times slower instead: less than 1e-3 radians over a
million tokens. d = 128, base 1e4, P = 2048: 41 pairs stay, 14 turn once in 32768 tokens, 9 do not
turn. The target plays no part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob

STILL = 1e9
"""What the frequency of a pair that should not turn is divided by."""


@final
@dataclass(frozen=True)
class Truncated(AbstractStrategy):
    """Keep the pairs that turned; one slow speed, or none, for the others."""

    summary = "keeps pairs that turned in the window, slows the next to one speed, stops the rest"
    source = "Pal et al. 2023 (Giraffe), arXiv 2308.10882; abacusai/Long-Context interpolate.py"
    choose_when = "kept for lineage: good perplexity, weak on retrieval"
    starts_at_identity = False

    truncate_pos: int = knob(
        0,
        "tokens in which a pair must turn once to stay; 0 means the native window",
        1,
        10**9,
        or_zero=True,
    )
    scale: float = knob(1.0, "every pair is divided by this, before truncation", 1, 1e6)
    power: float = knob(0.0, "pair i is multiplied by (1 - 2i/d)^power, before truncation", 0, 10)

    def inv_freq(self, head: Head) -> FloatArray:
        scaled = head.base_inv_freq() / self.scale * (1 - head.exponents()) ** self.power
        kept = 2 * math.pi / (self.truncate_pos or head.original_max_position_embeddings)
        slowed = np.where(scaled < kept, kept / 16, scaled)
        return np.where(scaled < kept / 8, scaled / STILL, slowed)
