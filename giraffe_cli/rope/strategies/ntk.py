"""NTK-aware scaling: a larger base, so that fast pairs stay and the slowest is divided by s.

    base' = base · α^(d/(d-2))          θ'_i = base'^(-2i/d)          α = s unless given

The exponent makes the slowest pair (i = d/2-1) exactly α times slower and leaves the fastest at 1.
base 1e4, d = 128, α = 4: base' = 40889.9. Pairs in between are divided by less than s, so those
whose wavelength is near the native window extrapolate a little: α above s is a common remedy.
The result is an ordinary `rope_theta`, which every runtime computes exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob


@final
@dataclass(frozen=True)
class Ntk(AbstractStrategy):
    """base · α^(d/(d-2))."""

    summary = "raises rope_theta so that only the slowest pair is divided by target/native"
    source = "bloc97 2023 (NTK-aware scaled RoPE); jquesnelle/yarn LlamaNTKScaledRotaryEmbedding"
    choose_when = "the runtime knows nothing but rope_theta, or as a baseline"

    alpha: float = knob(
        0.0,
        "α in base·α^(d/(d-2)); 0 means target/native, larger extrapolates less",
        1,
        1e6,
        or_zero=True,
    )

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        return [{}, {"alpha": 2 * head.factor}, {"alpha": 4 * head.factor}]

    def theta_ratio(self, head: Head) -> float:
        """base'/base."""
        return float((self.alpha or head.factor) ** (head.head_dim / (head.head_dim - 2)))

    def inv_freq(self, head: Head) -> FloatArray:
        return np.asarray(
            head.base_inv_freq() * self.theta_ratio(head) ** -head.exponents(), dtype=np.float64
        )

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": head.rope_theta * self.theta_ratio(head)}
