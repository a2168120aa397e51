"""Intervals that respect what is independent: samples for proportions, documents for text.

    wilson(10, 10)                                   → mean 1.0, 95 % [0.722, 1.0]
    clustered_bootstrap([3.1, 3.3, 2.9], ["a", "a", "b"], seed=0)   → resamples the documents a, b

Tokens of one document are not independent of each other, so text is resampled by document
(field standard: percentile bootstrap, 10,000 resamples). Differences are taken sample by sample
first and resampled after, which cancels how hard the text is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from giraffe_cli.evals.base import Value

Z_95 = 1.959963984540054
RESAMPLES = 10_000
FEWEST_CLUSTERS = 8
"""Below this many documents a bootstrap interval is too narrow to be relied on."""


class Score(TypedDict):
    """A mean with its two-sided 95 % interval over `n` samples."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


def wilson(successes: float, n: int) -> Score:
    """Wilson's score interval of a proportion (Wilson 1927); never leaves [0, 1].

    Raises:
        ValueError: no samples, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} samples is no proportion")
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at 0 and at n the bound is the share itself; rounding must not put it beside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return {"mean": share, "ci_low": low, "ci_high": high, "n": n}


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    weights: Sequence[float] | None = None,
) -> Score:
    """Weighted mean of `values` with the percentile interval over resampled `clusters`.

    Each resample draws as many clusters as there are, with replacement, and takes the mean of all
    their values; a longer document so weighs as much as it has samples.

    Raises:
        ValueError: no values, or one label or weight per value is missing.
    """
    weights = [1.0] * len(values) if weights is None else weights
    if not values or not len(values) == len(clusters) == len(weights):
        raise ValueError(f"{len(values)} values in {len(clusters)} labelled samples")
    sums, totals = _cluster_sums(values, clusters, weights)
    generator = np.random.default_rng([seed, len(totals)])
    drawn = generator.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), resamples)
    means = (drawn @ sums) / (drawn @ totals)
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "mean": float(sums.sum() / totals.sum()),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": len(values),
    }


def _cluster_sums(
    values: Sequence[float], clusters: Sequence[str], weights: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weighted sum of values and sum of weights per cluster, in the order of the labels."""
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    weight = np.asarray(weights, dtype=np.float64)
    sums, totals = np.zeros(index.max() + 1), np.zeros(index.max() + 1)
    np.add.at(sums, index, weight * np.asarray(values, dtype=np.float64))
    np.add.at(totals, index, weight)
    return sums, totals


def paired_difference(
    minuend: Mapping[str, Value],
    subtrahend: Mapping[str, Value],
    clusters: Mapping[str, str],
    seed: int,
    resamples: int = RESAMPLES,
) -> Score:
    """Mean of `minuend[pair] - subtrahend[pair]` over the shared pairs, resampled by cluster.

    Raises:
        ValueError: no pair is shared.
    """
    pairs = [pair for pair in minuend if pair in subtrahend]
    return clustered_bootstrap(
        [minuend[pair].value - subtrahend[pair].value for pair in pairs],
        [clusters[pair] for pair in pairs],
        seed,
        resamples,
        [minuend[pair].weight for pair in pairs],
    )
