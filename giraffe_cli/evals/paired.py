"""Differences on the same samples: what cancels how hard a text is, with interval and p-value.

    proportion  Tango's score interval         exact McNemar, where each sample is independent
    share       the same, for part answers     sign flips of whole clusters
    mean        bootstrap over documents       sign flips of whole clusters

Two models that agree in ten of ten samples may differ in one of four of all: Tango's interval is
then [-0.28, +0.28], where a bootstrap of ten equal zeros would be [0, 0] and pass any gate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from giraffe_cli.evals.measures import Kind, Value
from giraffe_cli.evals.statistics import (
    RESAMPLES,
    Z_95,
    Score,
    clustered_bootstrap,
    effective_samples,
    gather,
    in_blocks,
)

ENUMERATED = 13
"""Up to so many clusters that differ, all 2**13 = 8192 flips are counted; above, drawn."""


class PairedScore(Score):
    """A mean difference; `p_value` two-sided, of no difference."""

    p_value: float


def paired_difference(
    minuend: Mapping[str, Value],
    subtrahend: Mapping[str, Value],
    clusters: Mapping[str, str],
    seed: int,
    kind: Kind = "mean",
    parts: Mapping[str, int] | None = None,
) -> PairedScore:
    """Mean of `minuend[pair] - subtrahend[pair]` over the shared pairs.

    Args:
        clusters: the independent unit of each pair.
        kind: of the measure that is compared.
        parts: questions asked by each pair; default: one.

    Raises:
        ValueError: no pair is shared.
    """
    pairs = [pair for pair in minuend if pair in subtrahend]
    differences = [minuend[pair].value - subtrahend[pair].value for pair in pairs]
    labels = [clusters[pair] for pair in pairs]
    weights = [minuend[pair].weight for pair in pairs]
    if kind == "mean":
        score = clustered_bootstrap(differences, labels, seed, weights=weights)
    else:
        asked = sum((parts or {}).get(pair, 1) for pair in pairs)
        score = share_difference(differences, labels, weights, asked)
    independent = len({*labels}) == len(labels)
    if kind == "proportion" and independent:
        p_value = mcnemar(sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    else:
        p_value = sign_flip(gather(differences, labels, weights).sums, seed)
    return {**score, "p_value": p_value}


def share_difference(
    differences: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    parts: int = 0,
) -> Score:
    """Mean of differences in -1..1 with Tango's interval at the effective number of samples.

    A part answer counts by its share among the gains or the losses, which takes the spread for no
    less than it is, since |d| >= d**2.

    Raises:
        ValueError: no differences, or one label or weight per difference is missing.
    """
    gathered = gather(differences, clusters, weights)
    given = np.asarray([1.0] * len(differences) if weights is None else weights)
    signed = np.asarray(differences, dtype=np.float64)
    gain = float((given * np.maximum(signed, 0)).sum() / given.sum())
    loss = float((given * np.maximum(-signed, 0)).sum() / given.sum())
    mean = gain - loss
    n = max(parts, len(differences))
    differing, variance = n * (gain + loss), gain + loss - mean**2
    low, high = tango(gain, loss, effective_samples(gathered, n, variance, differing))
    return {
        "mean": mean,
        "ci_low": low,
        "ci_high": high,
        "n": len(differences),
        "clusters": len(gathered.totals),
    }


def tango(gain: float, loss: float, n: float) -> tuple[float, float]:
    """Score interval of a difference of paired proportions; never without width.

    The differences d that the score test (gain - loss - d) / sqrt(variance at d) does not reject.

    Args:
        gain: share of the `n` pairs that only the first answers, `loss`: only the second.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998) 891-908.
    """
    found = gain - loss

    def distance(difference: float) -> float:
        """Standard errors from `difference` to what was found; falls as it grows."""
        b = -gain - loss + (2 - found) * difference
        root = math.sqrt(max(0.0, b * b + 8 * loss * difference * (1 - difference)))
        losses = max(0.0, (root - b) / 4)  # the likeliest share of losses at this difference
        variance = (2 * losses + difference * (1 - difference)) / n
        return (found - difference) / math.sqrt(variance) if variance > 0 else math.inf

    low = _crossing(lambda d: distance(d) > Z_95, -1.0, found) if found > -1 else -1.0
    high = _crossing(lambda d: distance(d) > -Z_95, found, 1.0) if found < 1 else 1.0
    return low, high


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where `holds` turns from true to false between `low` and `high`, to 1e-12."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def mcnemar(gains: int, losses: int) -> float:
    """Exact two-sided p-value that gains and losses are equally likely (McNemar 1947).

    Twice the smaller tail of a fair coin over the pairs that differ; 1 where none does.
    """
    differing = gains + losses
    tail = sum(math.comb(differing, count) for count in range(min(gains, losses) + 1))
    return min(1.0, 2 * tail / (1 << differing))


def sign_flip(sums: npt.NDArray[np.float64], seed: int, draws: int = RESAMPLES) -> float:
    """Two-sided p-value that each cluster's difference is as likely of the other sign.

    All flips where at most 13 clusters differ; else `draws` of them, the found one counted too
    (Phipson & Smyth 2010), so that the value is never 0.

    Args:
        sums: `[clusters]` weighted sums of differences.

    Source: Fisher's randomisation test; Dror et al., "The Hitchhiker's Guide to Testing
    Statistical Significance in NLP", 2018.
    """
    differing = np.abs(sums[sums != 0])
    found = abs(float(sums.sum())) * (1 - 1e-9)  # equal sums in another order are equal
    if len(differing) <= ENUMERATED:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differing))))
        return float(np.mean(np.abs(signs @ differing) >= found))
    generator, reached = np.random.default_rng([seed, len(differing)]), 0
    for rows in in_blocks(draws, len(differing)):
        signs = generator.choice([-1.0, 1.0], (rows, len(differing)))
        reached += int(np.count_nonzero(np.abs(signs @ differing) >= found))
    return (reached + 1) / (draws + 1)
