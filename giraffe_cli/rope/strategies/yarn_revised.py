"""YaRN with the blend taken over wavelengths, as PoSE trained it.

    ramp_i as in YaRN           θ'_i = θ_i / ((1 - ramp_i) + s · ramp_i)
    cos and sin times 0.1 ln s + 1

YaRN blends frequencies: half-way up the ramp it keeps (1 + 1/s)/2 of a frequency. Here the divisor
is the mean of 1 and s instead, which is always the larger one: s = 4 gives a divisor of 2.5 against
YaRN's 1.6, so the pairs between are interpolated more and extrapolate less. The ends agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob
from giraffe_cli.rope.strategies._ramp import ramp, ramp_ends, sharpening


@final
@dataclass(frozen=True)
class YarnRevised(AbstractStrategy):
    """Ramp between a divisor of 1 and of s, with YaRN's sharper softmax."""

    summary = "YaRN with divisors instead of frequencies blended: slows the pairs between more"
    source = "Zhu et al. 2023, arXiv 2309.10400; dwzhu-pku/PoSE revised_yarn; jquesnelle/yarn#24"
    choose_when = "YaRN's middle pairs extrapolate too far, or to repeat PoSE"

    beta_fast: float = knob(
        32.0, "pairs turning more often than this in the window stay", 1e-6, 1e9
    )
    beta_slow: float = knob(1.0, "pairs turning less often than this are divided by s", 1e-6, 1e9)

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
        return [{}, {"factor": 2 * head.factor}]

    def inv_freq(self, head: Head) -> FloatArray:
        divided = ramp(head, *ramp_ends(head, self.beta_fast, self.beta_slow))
        scale = self.factor or head.factor
        table: FloatArray = head.base_inv_freq() / (1 - divided + scale * divided)
        return table

    def attention_factor(self, head: Head) -> float:
        return sharpening(self.factor or head.factor)
