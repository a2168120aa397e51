"""Giraffe's power basis: the slower a pair, the more it is slowed.

    θ'_i = θ_i / scale · (1 - i/(d/2))^power

Division first, power second, in Giraffe's order; both are factors, so the order changes nothing.
The fastest pair keeps its speed (with scale 1), the slowest is divided by (d/2)^power. d = 128,
power 0.5: pair 32 is multiplied by 0.7071, pair 63 by 0.125. The target plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob


@final
@dataclass(frozen=True)
class Power(AbstractStrategy):
    """θ_i · (1 - 2i/d)^power / scale."""

    summary = "multiplies pair i by (1 - 2i/d)^power: slow pairs are slowed the most"
    source = "Pal et al. 2023 (Giraffe), arXiv 2308.10882; abacusai/Long-Context interpolate.py"
    choose_when = "kept for lineage: weak on retrieval, where it drops off sharpest with length"
    starts_at_identity = False

    power: float = knob(0.5, "exponent; 0 leaves only the division by scale", 0, 10)
    scale: float = knob(1.0, "every pair is divided by this too", 1, 1e6)

    def inv_freq(self, head: Head) -> FloatArray:
        scaled = head.base_inv_freq() / self.scale
        return np.asarray(scaled * (1 - head.exponents()) ** self.power, dtype=np.float64)
