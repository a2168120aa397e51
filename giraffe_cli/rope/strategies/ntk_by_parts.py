"""NTK-by-parts: linear for the slowest pairs, NTK between, unscaled for the fastest.

    linear_i = θ_i / s                  ntk_i = θ_i · s^(-i/(d/2-1))
    low, high = floor corr(β0), ceil corr(β1)      mix = linear · ramp + ntk · (1 - ramp)
    low, high = floor corr(γ0), ceil corr(γ1)      θ'  = mix · ramp + θ · (1 - ramp)

β0, β1 = 1.25, 0.75 and γ0, γ1 = 16, 2 turns in the native window, which the authors found by
experiment on LLaMA. corr and ramp are YaRN's, which replaced this scheme by one ramp. d = 128,
base 1e4, L0 = 4096: β between pairs 43 and 48, γ between 25 and 41. No attention factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from giraffe_cli.errors import raise_together
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob
from giraffe_cli.rope.strategies._ramp import ramp, ramp_ends


@final
@dataclass(frozen=True)
class NtkByParts(AbstractStrategy):
    """Two ramps: linear to NTK, then to unscaled."""

    summary = "keeps fast pairs, divides slow ones by target/native, NTK between, no sharpening"
    source = "bloc97 2023; jquesnelle/yarn LlamaPartNTKScaledRotaryEmbedding"
    choose_when = "YaRN's attention factor is not wanted, or to repeat the work before YaRN"

    beta_0: float = knob(
        1.25, "pairs turning more often than this are NTK's, not linear", 1e-6, 1e9
    )
    beta_1: float = knob(0.75, "pairs turning less often than this are divided by s", 1e-6, 1e9)
    gamma_0: float = knob(16.0, "pairs turning more often than this stay", 1e-6, 1e9)
    gamma_1: float = knob(2.0, "pairs turning less often than this are scaled in full", 1e-6, 1e9)

    factor: float = knob(
        0.0,
        "s, by which the slowest pairs are divided; 0 means target/native",
        1,
        1e6,
        or_zero=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        ends = {"beta": (self.beta_0, self.beta_1), "gamma": (self.gamma_0, self.gamma_1)}
        problems = [
            f"{name}_0 {fast:g} must be larger than {name}_1 {slow:g}"
            for name, (fast, slow) in ends.items()
            if fast <= slow
        ]
        raise_together(problems, "knobs of NtkByParts")

    def ramps(self, head: Head) -> tuple[tuple[float, float], tuple[float, float]]:
        """`(low, high)` pair indices of β's ramp and of γ's.

        Raises:
            InvalidInput: one of the two leaves no ramp on this head.
        """
        beta = ramp_ends(head, self.beta_0, self.beta_1)
        return beta, ramp_ends(head, self.gamma_0, self.gamma_1)

    def inv_freq(self, head: Head) -> FloatArray:
        beta, gamma = (ramp(head, *ends) for ends in self.ramps(head))
        base, last = head.base_inv_freq(), head.head_dim / (head.head_dim - 2)
        scale = self.factor or head.factor
        ntk = base * scale ** (-last * head.exponents())
        scaled = base / scale * beta + ntk * (1 - beta)
        table: FloatArray = scaled * gamma + base * (1 - gamma)
        return table
