"""Plain positions: 0, 1, 2, … inside each document piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from giraffe_cli.rope.scheme import AbstractPositions


@final
@dataclass(frozen=True)
class Plain(AbstractPositions):
    """Positions as at inference; the window must be as long as the target to teach the target."""

    summary = "0, 1, 2, … : the positions inference will see"
    source = "Vaswani et al. 2017"

    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        return np.arange(length, dtype=np.int64)
