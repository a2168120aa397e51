"""Giraffe's randomised positions: real-valued steps, drawn anew for each piece.

    n+1 steps ~ U(0, 2T/n), t = their running sum, divided by t_{n+1}/T where that is above 1
    positions t_1 … t_n                           n tokens, target T

The mean step T/n lets a piece of any length reach the target; with n = T the steps are Giraffe's
U(0, 2), whose mean is 1. The step n+1 is what is left before the target, so t_n stays below it.
Positions are float64: between whole numbers, strictly increasing, from above 0. At mean steps far
above 1 neighbouring tokens are as far apart as the target allows, which a base has never seen:
small ratios of target to window suit it best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from giraffe_cli.rope.scheme import AbstractPositions

SMALLEST_STEP = 1e-6
"""Of the mean step: below it a sum near the target could round to the one before."""


@final
@dataclass(frozen=True)
class Randomised(AbstractPositions):
    """Running sum of uniform steps, rescaled where it would pass the target."""

    summary = "uniform random steps of mean target/length, between whole positions"
    source = "Pal et al. 2023 (Giraffe), arXiv 2308.10882; abacusai/Long-Context interpolate.py"

    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """`[length]` float64 positions in (0, target_length)."""
        mean = target_length / length
        steps = generator.uniform(SMALLEST_STEP * mean, 2 * mean, size=length + 1)
        ends = np.cumsum(steps)
        positions: npt.NDArray[np.float64] = ends[:-1] * min(1.0, target_length / ends[-1])
        return positions
