"""Linear position interpolation: every pair turns s times slower.

    θ'_i = θ_i / s          s = target / native window

Position p of the long window is rotated exactly as position p/s of the native one, so nothing is
ever extrapolated; neighbouring tokens come s times closer, which blurs the fastest pairs and wants
a fine-tune. s = 4, d = 128: the fastest pair goes from 1 to 0.25 radians per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head


@final
@dataclass(frozen=True)
class Linear(AbstractStrategy):
    """θ_i / s for every pair."""

    summary = "divides every frequency by target/native"
    source = "Chen et al. 2023, arXiv 2306.15595; kaiokendev; transformers `linear`"
    choose_when = "you fine-tune for long enough and want the simplest table, or as a baseline"

    def inv_freq(self, head: Head) -> FloatArray:
        return head.base_inv_freq() / head.factor

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "linear", "factor": head.factor}
