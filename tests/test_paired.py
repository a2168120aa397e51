"""Paired differences against likelihoods maximised by brute force and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.paired import (
    mcnemar,
    paired_difference,
    share_difference,
    sign_flip,
    tango,
)
from giraffe_cli.evals.statistics import Z_95


def values(**given_values):
    return {name: Value(value) for name, value in given_values.items()}


def difference(first, second, kind="mean", clusters=None):
    """Rows of values, paired by place; each its own cluster unless said."""
    names = [str(place) for place in range(len(first))]
    return paired_difference(
        {name: Value(v) for name, v in zip(names, first, strict=True)},
        {name: Value(v) for name, v in zip(names, second, strict=True)},
        dict(zip(names, clusters or names, strict=True)),
        0,
        kind,
    )


# ── the interval ─────────────────────────────────────────────────────────────────────────────


def score_distance(gains, losses, n, delta):
    """Standard errors between what was found and `delta`, the share of losses by a fine search."""

    def likelihood(share):
        same = 1 - 2 * share - delta
        terms = ((gains, share + delta), (losses, share), (n - gains - losses, same))
        return sum(k * math.log(p) if p > 0 else (-math.inf if k else 0.0) for k, p in terms)

    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(200):  # concave: cut the third that is worse
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if likelihood(left) < likelihood(right) else (low, right)
    variance = (2 * (low + high) / 2 + delta - delta * delta) / n
    return ((gains - losses) / n - delta) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("gains", "losses", "n"), [(3, 1, 10), (9, 0, 20), (1, 6, 50), (86, 150, 1600), (5, 5, 12)]
)
def test_tangos_bounds_are_where_the_score_test_just_rejects(gains, losses, n):
    low, high = tango(gains / n, losses / n, n)
    assert score_distance(gains, losses, n, low) == pytest.approx(Z_95, rel=1e-4)
    assert score_distance(gains, losses, n, high) == pytest.approx(-Z_95, rel=1e-4)


def test_agreement_in_ten_of_ten_leaves_a_wide_interval():
    """No pair differs: +-z**2 / (n + z**2) = 0.2775 at 10."""
    found = difference([1.0] * 7 + [0.0] * 3, [1.0] * 7 + [0.0] * 3, "proportion")
    assert found["mean"] == 0
    assert found["ci_low"] == pytest.approx(-0.2775, abs=5e-5)
    assert found["ci_high"] == pytest.approx(0.2775, abs=5e-5)
    assert found["p_value"] == 1
    assert difference([0.5] * 10, [0.5] * 10, "share")["ci_high"] > 0.25


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=40))
def test_a_difference_of_shares_is_bounded_symmetric_and_never_without_width(differences):
    labels = [str(i // 2) for i in range(len(differences))]
    found = share_difference(differences, labels)
    assert -1 <= found["ci_low"] <= found["mean"] <= found["ci_high"] <= 1
    assert found["ci_high"] - found["ci_low"] > 1 / (len(differences) + 4)
    mirrored = share_difference([-d for d in differences], labels)
    assert mirrored["ci_low"] == pytest.approx(-found["ci_high"], abs=1e-6)
    assert mirrored["ci_high"] == pytest.approx(-found["ci_low"], abs=1e-6)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 20))
def test_one_more_gain_raises_both_ends(gains, losses, same):
    n = gains + losses + same + 1
    before, after = tango(gains / n, losses / n, n), tango((gains + 1) / n, losses / n, n)
    assert before[0] < after[0]
    assert before[1] < after[1] or after[1] == pytest.approx(1)


def test_pairs_that_share_a_haystack_widen_the_interval():
    first, second = [1.0] * 20 + [0.0] * 20, [0.0] * 40
    alone = difference(first, second, "proportion")
    shared = difference(first, second, "proportion", [str(i // 10) for i in range(40)])
    assert shared["clusters"] == 4
    assert shared["ci_low"] < 0 < alone["ci_low"]
    assert alone["p_value"] < 1e-5
    assert shared["p_value"] == 0.5  # two haystacks differ, both the same way: 2 flips of 4


# ── p-values ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("gains", "losses", "p_value"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 0, 2 / 1024), (9, 1, 22 / 1024), (4, 4, 1.0)],
)
def test_mcnemar_is_twice_the_tail_of_a_coin(gains, losses, p_value):
    assert mcnemar(gains, losses) == pytest.approx(p_value)
    assert mcnemar(losses, gains) == mcnemar(gains, losses)


@given(st.integers(0, 6), st.integers(0, 6))
def test_sign_flips_of_single_samples_are_mcnemars_test(gains, losses):
    flips = sign_flip(np.array([1.0] * gains + [-1.0] * losses + [0.0] * 3), seed=0)
    assert flips == pytest.approx(mcnemar(gains, losses))


def test_drawn_flips_agree_with_the_exact_value():
    drawn = sign_flip(np.array([1.0] * 12 + [-1.0] * 5), seed=0)
    assert drawn == pytest.approx(mcnemar(12, 5), abs=0.015)  # 0.143; three times sd of 10,000
    assert sign_flip(np.ones(30), seed=0) == pytest.approx(1 / 10_001)  # never 0
    assert sign_flip(np.ones(30), seed=0) == sign_flip(-np.ones(30), seed=0)


def test_flips_take_whole_documents():
    """Two documents of one sign: 2 of 4 flips reach the sum, however many anchors they hold."""
    found = difference([1.0] * 40, [0.5] * 40, clusters=["a"] * 20 + ["b"] * 20)
    assert found["p_value"] == 0.5
    assert found["n"] == 40
    assert found["clusters"] == 2


@settings(max_examples=25)
@given(st.integers(0, 10**6))
def test_without_a_difference_p_is_not_small(seed):
    """Signs at random over 10 documents: p below 0.05 in 5 % of cases, so seldom below 0.002."""
    sums = np.random.default_rng(seed).normal(size=10)
    assert 2 / 1024 <= sign_flip(sums, seed=0) <= 1


def test_false_alarms_come_as_often_as_they_should():
    alarms = [
        sign_flip(np.random.default_rng(seed).normal(size=10), seed=0) <= 0.05
        for seed in range(400)
    ]
    assert 0.02 <= np.mean(alarms) <= 0.08


# ── the difference as a whole ────────────────────────────────────────────────────────────────


def test_pairing_cancels_how_hard_a_document_is():
    short = {"a@1": Value(1.0), "a@2": Value(1.5), "b@1": Value(9.0), "only short": Value(3.0)}
    long = {"a@1": Value(0.9), "a@2": Value(1.4), "b@1": Value(8.9), "only long": Value(0.0)}
    clusters = {"a@1": "a", "a@2": "a", "b@1": "b"}
    score = paired_difference(long, short, clusters, seed=0)
    assert score["n"] == 3
    assert score["mean"] == pytest.approx(-0.1)
    assert score["ci_high"] - score["ci_low"] < 1e-12
    assert score["p_value"] == 0.5


@pytest.mark.parametrize("kind", ["mean", "proportion", "share"])
def test_a_pair_of_twice_the_weight_counts_twice(kind):
    """One pair of three tokens that gains, one of one that loses: (3 - 1) / 4, not 0."""
    first = {"a": Value(1.0, 3.0), "b": Value(0.0, 1.0)}
    second = {"a": Value(0.0, 3.0), "b": Value(1.0, 1.0)}
    score = paired_difference(first, second, {"a": "a", "b": "b"}, 0, kind)
    assert score["mean"] == pytest.approx(0.5)


def test_pairing_needs_a_shared_sample():
    with pytest.raises(ValueError, match="0 values"):
        paired_difference(values(a=1.0), values(b=1.0), {}, seed=0)
