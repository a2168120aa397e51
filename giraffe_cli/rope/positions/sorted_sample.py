"""Sorted sampling: n of the target's positions, without repetition, in order.

n = 4, T = 10: for instance 1 3 4 8. Every position is as likely as any other, neighbours are T/n
apart on average, and with n = T the positions are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from giraffe_cli.rope.scheme import AbstractPositions


@final
@dataclass(frozen=True)
class SortedSample(AbstractPositions):
    """A sorted random sample of {0 … target-1}."""

    summary = "a sorted random sample of the target's whole positions"
    source = "Ruoss et al. 2023, arXiv 2305.16843; PoSE's randomised variant; DAMO-NLP-SG/CLEX"

    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """`[length]` of the `target_length` positions; a piece must not be longer than that."""
        return np.sort(generator.choice(target_length, length, replace=False, shuffle=False))
