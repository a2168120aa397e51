"""PoSE: a short piece that visits the whole target window by skipping positions.

    piece of n tokens in k chunks, target T
    the first k-1 chunks ~ U{1 … (n+1)//k} tokens, the last has the rest
    shifts 0 ≤ u_1 ≤ … ≤ u_{k-1}: sorted draws from U{0 … T-n}; chunk j is shifted by u_j

n = 6, T = 16, k = 2, first chunk 3, u = 10: 0 1 2 13 14 15. Over many pieces every relative
distance below the target occurs, at the cost of a window of n: the CPU's way to long targets. Each
step larger than one is *not* a document boundary, so attention must be told the boundaries
(`cu_seqlens`).

k = 2 is the published rule. Sorting makes the k-1 skips and the room left at the end alike in
distribution, (T-n)/k on average; a piece of fewer than k tokens has a chunk for each token. Text is
the piece as it is: the published recipe also moves the second chunk's *text* elsewhere in the
document, here all chunks stay neighbours, which keeps every packed token in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from giraffe_cli.rope.knobs import knob
from giraffe_cli.rope.scheme import AbstractPositions


@final
@dataclass(frozen=True)
class Pose(AbstractPositions):
    """Chunks, each shifted by a random skip against the one before."""

    summary = "chunks with random skips between them, so that short windows reach the target"
    source = "Zhu et al. 2023, arXiv 2309.10400; dwzhu-pku/PoSE src/train_pose.py"

    chunks: int = knob(2, "chunks in a piece; one skip fewer than chunks", 2, 64)

    def position_ids(
        self, length: int, target_length: int, generator: np.random.Generator
    ) -> npt.NDArray[np.int64]:
        """`[length]` positions; one token, or a piece as long as the target, has no skip."""
        positions = np.arange(length, dtype=np.int64)
        chunks = min(self.chunks, length)
        if chunks < 2:
            return positions
        longest, room = (length + 1) // chunks, max(target_length - length, 0)
        lengths = generator.integers(1, longest, size=chunks - 1, endpoint=True)
        shifts = np.sort(generator.integers(0, room, size=chunks - 1, endpoint=True))
        chunk = np.searchsorted(np.cumsum(lengths), positions, side="right")
        return positions + np.concatenate(([0], shifts))[chunk]
