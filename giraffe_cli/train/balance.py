"""Which of a step's windows each process trains, so that none waits long for another.

Windows hold equally many tokens, but attention grows with the square of a document's length: at
128k it is most of what a window of one document costs, and next to nothing of many short ones.
"""

from __future__ import annotations

from collections.abc import Sequence


def shared_out(costs: Sequence[float], processes: int) -> list[list[int]]:
    """Places in `costs` for each process, equally many, each in the order it takes them.

        3 3 1 9 8 1 for 2 processes  →  9 + 3 + 1: [3, 1, 5], 8 + 3 + 1: [4, 0, 2]

    By cost, the largest first, as many at a time as there are processes: the n-th windows of all
    cost about the same, which counts where each layer waits for all of them (a base that is shared
    out). Of those the largest goes to whoever has least so far (Graham 1969, "Bounds on
    multiprocessing timing anomalies"), which makes the sums nearly equal. Equal costs go round.
    `processes` divides the number of costs.
    """
    if processes == 1:
        return [list(range(len(costs)))]
    order = sorted(range(len(costs)), key=lambda place: -costs[place])
    shares: list[list[int]] = [[] for _ in range(processes)]
    sums = [0.0] * processes
    for first in range(0, len(order), processes):
        least = sorted(range(processes), key=lambda process: sums[process])
        for process, place in zip(least, order[first : first + processes], strict=True):
            shares[process].append(place)
            sums[process] += costs[place]
    return shares
