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
from giraffe_cli.rope.knobs import knob


@final
@dataclass(frozen=True)
class Linear(AbstractStrategy):
    """θ_i / s for every pair."""

    summary = "divides every frequency by target/native"
    source = "Chen et al. 2023, arXiv 2306.15595; kaiokendev; transformers `linear`"
    choose_when = "you fine-tune for long enough and want the simplest table, or as a baseline"

    factor: float = knob(
        0.0,
        "every pair is divided by this; 0 means target/native",
        1,
        1e6,
        or_zero=True,
    )

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        return [{}, {"factor": 2 * head.factor}]

    def inv_freq(self, head: Head) -> FloatArray:
        return head.base_inv_freq() / (self.factor or head.factor)

    def native(self, head: Head) -> dict[str, Any] | None:
        """None where the factor is not target/native: vLLM takes the window from it."""
        if self.factor not in (0, head.factor):
            return None
        return {"rope_type": "linear", "factor": head.factor}
