"""YaRN: pairs that turn often in the native window stay, those that turn less than once are
divided by s, a linear ramp over the pair index joins them, and the logits are sharpened.

    corr(n) = d · ln(L0 / (2πn)) / (2 ln base)        the pair that turns n times in L0 tokens
    low, high = floor corr(β_fast), ceil corr(β_slow), clamped to [0, d-1]
    ramp_i = clamp((i - low) / (high - low), 0, 1)
    θ'_i = θ_i (1 - ramp_i) + (θ_i / s) ramp_i
    cos and sin times 0.1 ln s + 1

d = 128, base 1e4, L0 = 4096: low, high = 20, 46; s = 4: cos and sin times 1.138629.
The ramp runs over indices up to d/2 although `high` may reach d-1, as in the authors' code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob


@final
@dataclass(frozen=True)
class Yarn(AbstractStrategy):
    """Ramp between unscaled and divided frequencies, with a sharper softmax."""

    summary = "keeps fast pairs, divides slow ones by target/native, sharpens attention"
    source = "Peng et al. 2023, arXiv 2309.00071; jquesnelle/yarn; transformers `yarn`"
    choose_when = "little or no fine-tuning: the best zero-shot table of the closed formulas"

    beta_fast: float = knob(32.0, "pairs turning more often than this in the window stay", 1e-6)
    beta_slow: float = knob(1.0, "pairs turning less often than this are divided by s", 1e-6)
    truncate: bool = knob(True, "round the ramp's ends outwards to whole pairs", 0, 1)
    mscale: float = knob(1.0, "cos and sin are multiplied by 0.1·mscale·ln s + 1", 0, 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_fast <= self.beta_slow:
            raise InvalidInput(
                f"beta_fast {self.beta_fast:g} must be larger than beta_slow {self.beta_slow:g}"
            )

    def ramp_ends(self, head: Head) -> tuple[float, float]:
        """Pair indices `(low, high)` between which frequencies blend.

        Raises:
            InvalidInput: the ramp would run backwards (transformers would divide the wrong end).
        """
        low, high = head.pair_turning(self.beta_fast), head.pair_turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head.head_dim - 1)
        if high < low:
            raise InvalidInput(
                f"beta_fast {self.beta_fast:g} and beta_slow {self.beta_slow:g} leave no ramp: no "
                f"pair turns that often in {head.original_max_position_embeddings} tokens",
                "lower beta_slow",
            )
        return low, high

    def inv_freq(self, head: Head) -> FloatArray:
        low, high = self.ramp_ends(head)
        # The authors' guard against a ramp of no width.
        width = high - low if high != low else 0.001
        divided = np.clip((np.arange(head.head_dim // 2) - low) / width, 0.0, 1.0)
        base = head.base_inv_freq()
        table: FloatArray = base * (1 - divided) + base / head.factor * divided
        return table

    def attention_factor(self, head: Head) -> float:
        return 0.1 * self.mscale * math.log(head.factor) + 1.0 if head.factor > 1 else 1.0

    def native(self, head: Head) -> dict[str, Any]:
        return {
            "rope_type": "yarn",
            "factor": head.factor,
            "original_max_position_embeddings": head.original_max_position_embeddings,
            "attention_factor": self.attention_factor(head),
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
        }
