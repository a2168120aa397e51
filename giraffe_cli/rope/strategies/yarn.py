"""YaRN: pairs that turn often in the native window stay, those that turn less than once are
divided by s, a linear ramp over the pair index joins them, and the logits are sharpened.

    corr(n) = d · ln(L0 / (2πn)) / (2 ln base)        the pair that turns n times in L0 tokens
    low, high = floor corr(β_fast), ceil corr(β_slow), clamped to [0, d-1]
    ramp_i = clamp((i - low) / (high - low), 0, 1)
    θ'_i = θ_i (1 - ramp_i) + (θ_i / s) ramp_i
    cos and sin times t(mscale) / t(mscale_all_dim), t(m) = 0.1 m ln s + 1

d = 128, base 1e4, L0 = 4096: low, high = 20, 46; s = 4: cos and sin times 1.138629.
The ramp runs over indices up to d/2 although `high` may reach d-1, as in the authors' code.
`mscale_all_dim` is DeepSeek's: what it divides out here, their attention multiplies back in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob
from giraffe_cli.rope.strategies._ramp import ramp, ramp_ends, sharpening

LARGEST_NATIVE_FACTOR = 128.0
"""Of a ramp between pairs. transformers blends in float32, whose rounding where the ramp ends
counts against θ/s: 1.2e-5 at most in 6,000 random shapes up to 128."""


@final
@dataclass(frozen=True)
class Yarn(AbstractStrategy):
    """Ramp between unscaled and divided frequencies, with a sharper softmax."""

    summary = "keeps fast pairs, divides slow ones by target/native, sharpens attention"
    source = "Peng et al. 2023, arXiv 2309.00071; jquesnelle/yarn; transformers `yarn`"
    choose_when = "little or no fine-tuning: the best zero-shot table of the closed formulas"

    beta_fast: float = knob(
        32.0, "pairs turning more often than this in the window stay", 1e-6, 1e9
    )
    beta_slow: float = knob(1.0, "pairs turning less often than this are divided by s", 1e-6, 1e9)
    truncate: bool = knob(True, "round the ramp's ends outwards to whole pairs", 0, 1)
    mscale: float = knob(1.0, "cos and sin are multiplied by 0.1·mscale·ln s + 1", 0, 10)
    mscale_all_dim: float = knob(
        0.0, "and divided by 0.1·mscale_all_dim·ln s + 1; 0 divides by nothing", 0, 10
    )

    factor: float = knob(
        0.0,
        "s, by which slow pairs are divided; 0 means target/native",
        1,
        1e6,
        or_zero=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_fast <= self.beta_slow:
            raise InvalidInput(
                f"beta_fast {self.beta_fast:g} must be larger than beta_slow {self.beta_slow:g}"
            )

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        """128 and 2 turns are what was suggested for Mistral (microsoft/LongRoPE search.py)."""
        return [
            {},
            {"beta_fast": 128.0, "beta_slow": 2.0},
            {"beta_fast": 16.0},
            {"factor": 2 * head.factor},
        ]

    def ramp_ends(self, head: Head) -> tuple[float, float]:
        """Pair indices `(low, high)` between which frequencies blend.

        Raises:
            InvalidInput: the betas leave no ramp on this head.
        """
        return ramp_ends(head, self.beta_fast, self.beta_slow, truncate=self.truncate)

    def scale(self, head: Head) -> float:
        """s."""
        return self.factor or head.factor

    def inv_freq(self, head: Head) -> FloatArray:
        divided, base = ramp(head, *self.ramp_ends(head)), head.base_inv_freq()
        table: FloatArray = base * (1 - divided) + base / self.scale(head) * divided
        return table

    def attention_factor(self, head: Head) -> float:
        numerator = sharpening(self.scale(head), self.mscale)
        return numerator / sharpening(self.scale(head), self.mscale_all_dim)

    def native(self, head: Head) -> dict[str, Any] | None:
        """None where s is not target/native, which transformers 4 computes from the two lengths,
        and where a ramp that is not rounded outwards would magnify float32's rounding."""
        magnified = not self.truncate and head.factor > LARGEST_NATIVE_FACTOR
        if self.factor not in (0, head.factor) or magnified:
            return None
        return {
            "rope_type": "yarn",
            "factor": head.factor,
            "original_max_position_embeddings": head.original_max_position_embeddings,
            "attention_factor": self.attention_factor(head),
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "truncate": self.truncate,
        }
