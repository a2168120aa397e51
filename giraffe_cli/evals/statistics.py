"""Intervals that respect what is independent: samples for proportions, documents for text.

    wilson(10, 10)                                              → mean 1.0, 95 % [0.722, 1.0]
    clustered_share([1, 1, 1, 0], ["a", "a", "b", "b"])         → Wilson at fewer than 4 samples
    clustered_bootstrap([3.1, 3.3, 2.9], ["a", "a", "b"], seed=0)   → resamples the documents a, b

What stands in one cluster is not independent: tokens of one document, a needle at eleven depths of
one haystack. So means are resampled by cluster, and a proportion counts as many samples as its
clusters bear out. Proportions and shares never get an interval without width, whatever the
samples say: ten right answers of ten are no proof of always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from typing_extensions import TypedDict

Z_95 = 1.959963984540054
RESAMPLES = 10_000
FEWEST_CLUSTERS = 8
"""Below this many documents resampling them says too little, and intervals are those of Student's t
where that is wider (docs/evaluation.md)."""
ASSUMED_CORRELATION = 0.5
"""Of two samples of one cluster where nothing tells: the largest found in an evaluation of calf is
0.47 (`niah.exact` at 1.5k)."""
_T_95 = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004)
"""Student's t, two-sided 95 %, at 1 to 8 degrees of freedom."""


class Score(TypedDict):
    """A mean with its two-sided 95 % interval over `n` samples of `clusters` independent units."""

    mean: float
    ci_low: float
    ci_high: float
    n: int
    clusters: int


def student_t(degrees: float) -> float:
    """Two-sided 95 % quantile of Student's t: 2.3646 at 7, Z_95 at infinity; error below 1e-4.

    Source: a table up to 8 degrees, above it the expansion 26.7.5 of Abramowitz & Stegun (1964).
    """
    if degrees <= len(_T_95):
        return _T_95[int(degrees) - 1]
    z = Z_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def wilson(successes: float, n: int) -> Score:
    """Wilson's score interval of a proportion (Wilson 1927); never leaves [0, 1].

    Raises:
        ValueError: no samples, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} samples is no proportion")
    low, high = wilson_bounds(successes / n, n)
    return {"mean": successes / n, "ci_low": low, "ci_high": high, "n": n, "clusters": n}


def wilson_bounds(share: float, n: float) -> tuple[float, float]:
    """Both ends of Wilson's interval around `share` of `n` samples; `n` may be a fraction."""
    z2 = Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at 0 and at 1 the bound is the share itself, and next to them it lies nearer to it than
    # rounding does: neither may be put on the share's other side
    low, high = min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))
    return 0.0 if share == 0 else low, 1.0 if share == 1 else high


class Clusters(NamedTuple):
    """Samples gathered by cluster, in the order of the labels."""

    sums: npt.NDArray[np.float64]
    """`[clusters]` weighted sum of the values."""
    totals: npt.NDArray[np.float64]
    """`[clusters]` sum of the weights."""

    @property
    def mean(self) -> float:
        """The weighted mean of all samples."""
        return float(self.sums.sum() / self.totals.sum())


def gather(
    values: Sequence[float], clusters: Sequence[str], weights: Sequence[float] | None = None
) -> Clusters:
    """`values` by cluster; every weight is 1 where none are given.

    Raises:
        ValueError: no values, or one label or weight per value is missing.
    """
    weights = [1.0] * len(values) if weights is None else weights
    if not values or not len(values) == len(clusters) == len(weights):
        raise ValueError(f"{len(values)} values in {len(clusters)} labelled samples")
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    weight = np.asarray(weights, dtype=np.float64)
    sums, totals = np.zeros(index.max() + 1), np.zeros(index.max() + 1)
    np.add.at(sums, index, weight * np.asarray(values, dtype=np.float64))
    np.add.at(totals, index, weight)
    return Clusters(sums, totals)


def effective_samples(gathered: Clusters, n: int, unit_variance: float, telling: float) -> float:
    """How many independent samples `n` samples in clusters are worth; at most `n`.

    `n` by the design effect, that is what the clusters' spread makes of `unit_variance` (of one
    independent sample), and by the squared ratio of Student's t at n - 1 to that at clusters - 1
    degrees of freedom; at least one a cluster, or fewer where a few hold most samples. Samples
    that each are a cluster are worth `n`.

    The spread is seen only in samples that are not like most: 110 right answers in ten haystacks
    look the same whether a haystack decides all of its own or none. So the design effect is the
    mean of what was found, which counts as often as there are `telling` samples, and of that under
    a correlation of `ASSUMED_CORRELATION`, which counts once.

    Source: Korn & Graubard, Survey Methodology 24 (1998), with the small-sample factor
    k / (k - 1) * (n - 1) / n of cluster-robust variances; the mean is our own, its coverage stands
    in docs/evaluation.md.
    """
    k, total = len(gathered.totals), gathered.totals.sum()
    if k == 1 or k == n:
        return float(k)
    found = 1.0
    if unit_variance > 0:
        found = max(1.0, (n - 1) * variance_of_mean(gathered) / unit_variance)
    size = n * float(np.sum((gathered.totals / total) ** 2))  # samples where a sample lies
    assumed = 1 + max(0.0, size - 1) * ASSUMED_CORRELATION
    worth = n * (telling + 1) / (telling * found + assumed)
    return max(n / size, worth * min(1.0, student_t(n - 1) / student_t(k - 1)) ** 2)


def variance_of_mean(gathered: Clusters) -> float:
    """Of the weighted mean, from the spread of two clusters or more."""
    k, total = len(gathered.totals), gathered.totals.sum()
    residuals = gathered.sums - gathered.mean * gathered.totals
    return k / (k - 1) * float(np.sum((residuals / total) ** 2))


def clustered_share(
    values: Sequence[float],
    clusters: Sequence[str],
    weights: Sequence[float] | None = None,
    parts: int = 0,
) -> Score:
    """Mean of values in 0..1 with Wilson's interval at the effective number of samples.

    Where each 0/1 sample is a cluster of its own this is Wilson's interval of the samples.

    Args:
        parts: questions in all samples together, where a value is the share of several that were
            answered; default: one each.

    Raises:
        ValueError: no values, or one label or weight per value is missing.
    """
    gathered, n = gather(values, clusters, weights), max(parts, len(values))
    mean = min(1.0, max(0.0, gathered.mean))
    rarer = n * min(mean, 1 - mean)
    low, high = wilson_bounds(mean, effective_samples(gathered, n, mean * (1 - mean), rarer))
    return _score(mean, low, high, len(values), gathered)


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    seed: int,
    resamples: int = RESAMPLES,
    weights: Sequence[float] | None = None,
) -> Score:
    """Weighted mean of `values` with the expanded percentile interval over resampled `clusters`.

    Each resample draws as many clusters as there are, with replacement, and takes the mean of all
    their values; a longer document so weighs as much as it has samples. Of k clusters the
    quantile Phi(-sqrt(k / (k - 1)) * t) is taken, t of Student at k - 1 degrees: 2.3 % at 40,
    1.4 % at 17 and 0.6 % at 8 instead of 2.5 %, since plain percentiles are too narrow by then.
    No mean of a resample leaves the clusters' own range, which of two documents holds the truth
    every other time; so below `FEWEST_CLUSTERS` the interval is widened to mean ± t * standard
    error where that reaches farther.

    Source: Hesterberg, "What Teachers Should Know About the Bootstrap", 2015, section 5.3.

    Raises:
        ValueError: no values, or one label or weight per value is missing.
    """
    gathered = gather(values, clusters, weights)
    outside, mean = tail(len(gathered.totals)), gathered.mean
    means = resampled_means(gathered, seed, resamples)
    low, high = np.quantile(means, [outside, 1 - outside])
    half = _half_of_few(gathered)  # 0 or more: the mean of equal values is rounded in a resample
    low, high = min(mean - half, float(low)), max(mean + half, float(high))
    return _score(mean, low, high, len(values), gathered)


def _half_of_few(gathered: Clusters) -> float:
    """Half the width of Student's interval where there are few clusters, else 0."""
    k = len(gathered.totals)
    if not 2 <= k < FEWEST_CLUSTERS:
        return 0.0
    return student_t(k - 1) * math.sqrt(variance_of_mean(gathered))


def resampled_means(gathered: Clusters, seed: int, resamples: int) -> npt.NDArray[np.float64]:
    """`[resamples]` weighted means of as many clusters as there are, drawn with replacement."""
    k = len(gathered.totals)
    generator = np.random.default_rng([seed, k])
    means = []
    for rows in in_blocks(resamples, k):
        drawn = generator.multinomial(k, np.full(k, 1 / k), rows)
        means.append((drawn @ gathered.sums) / (drawn @ gathered.totals))
    return np.concatenate(means)


def in_blocks(rows: int, columns: int) -> Iterator[int]:
    """`rows` in parts of at most 8 MB each: 5,000 clusters at one time would take 400 MB."""
    most = max(1, 1_000_000 // columns)
    for start in range(0, rows, most):
        yield min(most, rows - start)


def tail(clusters: int) -> float:
    """Share of the resamples outside either end of an interval from so many clusters."""
    if clusters < 2:
        return 0.025
    widening = math.sqrt(clusters / (clusters - 1)) * student_t(clusters - 1)
    return NormalDist().cdf(-widening)


def _score(mean: float, low: float, high: float, n: int, gathered: Clusters) -> Score:
    clusters = len(gathered.totals)
    return {"mean": mean, "ci_low": low, "ci_high": high, "n": n, "clusters": clusters}
