"""Llama 3.1's scaling: YaRN's idea with the ramp over turns instead of over the pair index.

    n_i = L0 · θ_i / 2π                                   turns of pair i in the native window
    kept_i = clamp((n_i - low) / (high - low), 0, 1)      low, high = 1, 4
    θ'_i = θ_i · kept_i + (θ_i / factor) · (1 - kept_i)

d = 128, base 5e5, L0 = 8192: 29 pairs stay, 6 blend, 29 are divided. Meta wrote factor 8 for
Llama 3.1 and 32 for the small Llama 3.2, both for 131072 tokens, which is 16·L0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob

LARGEST_NATIVE_FACTOR = 32.0
"""Meta's largest. transformers blends in float32, whose rounding near one turn counts against
θ/factor: 4.3e-6 at most in 6,000 random shapes up to 32, 5.1e-5 in 2,500 from 300 to 512."""


@final
@dataclass(frozen=True)
class Llama3(AbstractStrategy):
    """Pairs of more than four turns stay, of less than one are divided by the factor."""

    summary = "keeps pairs of 4 turns and more, divides those below one turn, blends between"
    source = "Llama 3.1 (Meta 2024, meta-llama/llama-models); transformers `llama3`"
    choose_when = "the table must run everywhere, llama.cpp included, and the base is a Llama 3"

    factor: float = knob(
        0.0, "slow pairs are divided by this; 0 means target/native", 1, 1e6, or_zero=True
    )
    low_freq_factor: float = knob(1.0, "pairs of fewer turns are divided by the factor", 1e-3, 1e3)
    high_freq_factor: float = knob(4.0, "pairs of more turns stay", 1e-3, 1e4)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high_freq_factor <= self.low_freq_factor:
            raise InvalidInput(
                f"high_freq_factor {self.high_freq_factor:g} must be larger than low_freq_factor "
                f"{self.low_freq_factor:g}"
            )

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        return [{}, {"factor": 2 * head.factor}]

    def inv_freq(self, head: Head) -> FloatArray:
        span = self.high_freq_factor - self.low_freq_factor
        kept = np.clip((head.turns() - self.low_freq_factor) / span, 0.0, 1.0)
        base = head.base_inv_freq()
        table: FloatArray = base * kept + base / (self.factor or head.factor) * (1 - kept)
        return table

    def native(self, head: Head) -> dict[str, Any] | None:
        """`llama3` up to `LARGEST_NATIVE_FACTOR`, else None."""
        factor = float(self.factor or head.factor)
        if factor > LARGEST_NATIVE_FACTOR:
            return None
        return {
            "rope_type": "llama3",
            "factor": factor,
            "original_max_position_embeddings": head.original_max_position_embeddings,
            "low_freq_factor": float(self.low_freq_factor),
            "high_freq_factor": float(self.high_freq_factor),
        }
