"""Intervals against hand-worked numbers and slow references written from the definitions."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.evals.statistics import (
    Z_95,
    clustered_bootstrap,
    paired_difference,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (10, 10, 0.7225, 1.0),  # the published [72, 100]
        (0, 10, 0.0, 0.2775),
        (50, 100, 0.4038, 0.5962),  # the published +-9.6 points
        (1, 1, 0.2065, 1.0),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    score = wilson(successes, n)
    assert score["mean"] == successes / n
    assert score["n"] == n
    assert score["ci_low"] == pytest.approx(low, abs=5e-5)
    assert score["ci_high"] == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_are_where_the_score_test_just_rejects(case):
    successes, n = case
    score = wilson(successes, n)
    assert 0 <= score["ci_low"] <= score["mean"] <= score["ci_high"] <= 1
    for bound in (score["ci_low"], score["ci_high"]):
        if bound not in (0.0, 1.0):
            distance = abs(score["mean"] - bound) / math.sqrt(bound * (1 - bound) / n)
            assert distance == pytest.approx(Z_95, rel=1e-6)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_proportion(successes, n):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(successes, n)


def naive_bootstrap(values, clusters, resamples):
    """Draw documents with replacement, pool their values, take the mean; sort, cut 2.5 % each."""
    draw = random.Random(1)
    by_cluster = {c: [v for v, k in zip(values, clusters, strict=True) if k == c] for c in clusters}
    means = []
    for _ in range(resamples):
        pooled = [
            v for c in draw.choices(sorted(by_cluster), k=len(by_cluster)) for v in by_cluster[c]
        ]
        means.append(sum(pooled) / len(pooled))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_bootstrap_agrees_with_a_loop_over_drawn_documents():
    values = [1.0, 1.2, 2.0, 3.0, 3.1, 3.2, 4.0, 5.5]
    clusters = ["a", "a", "b", "c", "c", "c", "d", "e"]
    score = clustered_bootstrap(values, clusters, seed=0)
    low, high = naive_bootstrap(values, clusters, 20_000)
    assert score["mean"] == pytest.approx(23 / 8)
    assert score["n"] == 8
    # two estimates of a quantile from 10,000 draws differ by about 0.02 here
    assert score["ci_low"] == pytest.approx(low, abs=0.08)
    assert score["ci_high"] == pytest.approx(high, abs=0.08)


def test_repeating_a_document_does_not_narrow_its_interval():
    twice = [1.0, 2.0, 3.0, 4.0]
    alone = clustered_bootstrap(twice, list("abcd"), seed=0)
    repeated = clustered_bootstrap(twice * 50, list("abcd") * 50, seed=0)
    as_if_independent = clustered_bootstrap(twice * 50, [str(i) for i in range(200)], seed=0)
    width = {k: s["ci_high"] - s["ci_low"] for k, s in {"a": alone, "r": repeated}.items()}
    assert width["r"] == pytest.approx(width["a"])
    assert as_if_independent["ci_high"] - as_if_independent["ci_low"] < width["r"] / 4


def test_one_document_has_no_spread():
    score = clustered_bootstrap([1.0, 3.0], ["a", "a"], seed=0)
    assert (score["ci_low"], score["mean"], score["ci_high"]) == (2.0, 2.0, 2.0)


def test_the_seed_decides_the_interval():
    values, clusters = [0.3, 1.7, 2.9, 3.2], list("abcd")
    first = clustered_bootstrap(values, clusters, seed=5, resamples=50)
    assert clustered_bootstrap(values, clusters, seed=5, resamples=50) == first
    assert clustered_bootstrap(values, clusters, seed=6, resamples=50) != first


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.sampled_from("abcdef")), min_size=1, max_size=20),
    st.integers(0, 9),
)
def test_bootstrap_stays_within_the_values(pairs, seed):
    values, clusters = [v for v, _ in pairs], [c for _, c in pairs]
    score = clustered_bootstrap(values, clusters, seed, resamples=200)
    slack = 1e-9
    assert min(values) - slack <= score["ci_low"] <= score["ci_high"] <= max(values) + slack


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"])])
def test_bootstrap_refuses_unlabelled_values(values, clusters):
    with pytest.raises(ValueError, match="labelled"):
        clustered_bootstrap(values, clusters, seed=0)


def test_pairing_cancels_how_hard_a_document_is():
    short = {"a@1": 1.0, "a@2": 1.5, "b@1": 9.0, "only short": 3.0}
    long = {"a@1": 0.9, "a@2": 1.4, "b@1": 8.9, "only long": 0.0}
    clusters = {"a@1": "a", "a@2": "a", "b@1": "b"}
    score = paired_difference(long, short, clusters, seed=0)
    assert score["n"] == 3
    assert score["mean"] == pytest.approx(-0.1)
    assert score["ci_high"] - score["ci_low"] < 1e-12


def test_pairing_needs_a_shared_sample():
    with pytest.raises(ValueError, match="0 values"):
        paired_difference({"a": 1.0}, {"b": 1.0}, {}, seed=0)
