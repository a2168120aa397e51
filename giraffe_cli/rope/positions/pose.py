"""PoSE: a short piece that visits the whole target window by skipping positions once.

    piece of n tokens, first chunk n1 ~ U{1 … (n+1)//2}, skip u ~ U{0 … target - n}
    positions 0 … n1-1, n1+u … n-1+u

n = 6, target 16, n1 = 3, u = 10: 0 1 2 13 14 15. Over many pieces every relative distance below the
target occurs, at the cost of a window of n: the CPU's way to long targets. Each step larger than
one is *not* a document boundary, so attention must be told the boundaries (`cu_seqlens`).

Text is the piece as it is: the published recipe also moves the second chunk's *text* elsewhere in
the document, here both chunks stay neighbours, which keeps every packed token in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from giraffe_cli.rope.scheme import AbstractPositions


@final
@dataclass(frozen=True)
class Pose(AbstractPositions):
    """Two chunks, the second shifted by a random skip."""

    summary = "two chunks with a random skip between them, so that short windows reach the target"
    source = "Zhu et al. 2023, arXiv 2309.10400; dwzhu-pku/PoSE src/train_pose.py"

    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """`[length]` positions; one token, or a piece as long as the target, has no skip."""
        positions = np.arange(length, dtype=np.int64)
        if length < 2:
            return positions
        first = int(generator.integers(1, (length + 1) // 2, endpoint=True))
        skip = int(generator.integers(0, max(target_length - length, 0), endpoint=True))
        positions[first:] += skip
        return positions
