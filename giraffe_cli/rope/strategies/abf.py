"""Adjusted base frequency: another `rope_theta` and nothing else.

    θ'_i = θ_i · r^(-2i/d)          r = rope_theta / the base's, given, or fitted:
    λ_i* · r^(2i*/d) = T            i* the slowest pair whose wavelength is within the window

The fit gives the slowest pair that completed a turn in training the target T as its wavelength.
Every pair up to it was seen at every angle; a slower one, seen in a part of the turn only, is
slowed by more than s and stays within that part: no pair meets an angle it was not trained at.
On an unscaled base r · base = (T/2π)^(d/2i*).
d = 128, base 5e5, L0 = 8192, T = 65536: i* = 34, rope_theta 3.65e7 (Gradient trained at 1.53e7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob

LARGEST_THETA = 1e15
"""Published bases end at 4.5e10 for four million tokens; float32 bears 1e38."""


@final
@dataclass(frozen=True)
class Abf(AbstractStrategy):
    """A larger rope_theta, given or fitted to the target."""

    summary = "raises rope_theta to a given value, or until the last pair that turned covers target"
    source = "Xiong et al. 2023, arXiv 2309.16039; EasyContext, ProLong and Gradient for values"
    choose_when = "you fine-tune on many tokens, or a recipe names its rope_theta"
    starts_at_identity = False

    rope_theta: float = knob(
        0.0,
        "the new base; 0 fits it: the slowest pair that turned once in the window gets the target "
        "as its wavelength",
        1,
        LARGEST_THETA,
        or_zero=True,
    )

    @classmethod
    def example(cls, head: Head) -> dict[str, Any]:
        """The fit, or the base times s where the head cannot be fitted."""
        try:
            fitted_theta(head)
        except InvalidInput:
            return {"rope_theta": head.rope_theta * head.factor}
        return {}

    @classmethod
    def variants(cls, head: Head) -> list[dict[str, Any]]:
        """The fit, and around it: published bases differ by such factors at equal targets."""
        try:
            fitted = fitted_theta(head)
        except InvalidInput:
            return [cls.example(head)]
        near = [theta for theta in (fitted / 4, fitted * 4) if head.rope_theta < theta]
        return [{}, *({"rope_theta": theta} for theta in near if theta <= LARGEST_THETA)]

    def theta(self, head: Head) -> float:
        """The new base.

        Raises:
            InvalidInput: below the base's own, or the head cannot be fitted.
        """
        if self.rope_theta and self.rope_theta < head.rope_theta:
            raise InvalidInput(
                f"rope_theta {self.rope_theta:g} is below the base's {head.rope_theta:g}, which "
                "would make every pair turn faster",
                "give a larger one, or 0 to have it fitted",
            )
        return float(self.rope_theta or fitted_theta(head))

    def inv_freq(self, head: Head) -> FloatArray:
        ratio = self.theta(head) / head.rope_theta
        return np.asarray(head.base_inv_freq() * ratio ** -head.exponents(), dtype=np.float64)

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": self.theta(head)}


def fitted_theta(head: Head) -> float:
    """The base under which the slowest pair that turned in the window takes the target to turn.

    Raises:
        InvalidInput: no pair whose speed depends on the base turned, or the fit is beyond reason.
    """
    turned = int(np.count_nonzero(head.turns() >= 1))
    window, hint = head.original_max_position_embeddings, "give rope_theta"
    if turned < 2:
        found = "no pair turns" if turned == 0 else "only pair 0, which no base slows, turns"
        raise InvalidInput(f"rope_theta cannot be fitted: {found} in {window} tokens", hint)
    last = turned - 1
    wavelength = 2 * math.pi / head.base_inv_freq()[last]
    exponent = head.head_dim / (2 * last)
    logarithm = math.log(head.rope_theta) + exponent * math.log(head.target_length / wavelength)
    if logarithm > math.log(LARGEST_THETA):
        raise InvalidInput(
            f"the fitted rope_theta is 10^{logarithm / math.log(10):.0f}, above {LARGEST_THETA:g}: "
            f"only {turned} of {head.head_dim // 2} pairs turn in {window} tokens",
            hint,
        )
    return math.exp(logarithm)
