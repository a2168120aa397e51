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

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head, knob


@final
@dataclass(frozen=True)
class Ntk(AbstractStrategy):
    """base · α^(d/(d-2))."""

    summary = "raises rope_theta so that only the slowest pair is divided by target/native"
    source = "bloc97 2023 (NTK-aware scaled RoPE); jquesnelle/yarn LlamaNTKScaledRotaryEmbedding"
    choose_when = "the runtime knows nothing but rope_theta, or as a baseline"

    alpha: float = knob(
        0.0, "α in base·α^(d/(d-2)); 0 means target/native, larger extrapolates less", 0, 1e6
    )

    def rope_theta(self, head: Head) -> float:
        """base', what is written to the config."""
        alpha = self.alpha or head.factor
        return float(head.rope_theta * alpha ** (head.head_dim / (head.head_dim - 2)))

    def inv_freq(self, head: Head) -> FloatArray:
        exponents = np.arange(0, head.head_dim, 2, dtype=np.float64) / head.head_dim
        return np.asarray(self.rope_theta(head) ** -exponents, dtype=np.float64)

    def attention_factor(self, head: Head) -> float:
        return 1.0

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": self.rope_theta(head)}
