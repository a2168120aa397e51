"""Intervals against hand-worked numbers and slow references written from the definitions."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.scoreboard import Entry, Scoreboard
from giraffe_cli.evals.statistics import (
    FEWEST_CLUSTERS,
    Z_95,
    clustered_bootstrap,
    clustered_share,
    effective_samples,
    gather,
    in_blocks,
    resampled_means,
    student_t,
    tail,
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


@pytest.mark.parametrize(
    ("degrees", "quantile"),  # printed tables of Student's t
    [(1, 12.7062), (7, 2.3646), (8, 2.3060), (9, 2.2622), (16, 2.1199), (39, 2.0227), (1e9, 1.96)],
)
def test_students_t_is_that_of_the_tables(degrees, quantile):
    assert student_t(degrees) == pytest.approx(quantile, abs=1e-4)


class TestClusteredShare:
    @given(st.lists(st.booleans(), min_size=1, max_size=60))
    def test_is_wilson_where_each_sample_stands_alone(self, hits):
        found = clustered_share([float(hit) for hit in hits], [str(i) for i in range(len(hits))])
        expected = wilson(sum(hits), len(hits))
        assert found == {key: pytest.approx(value) for key, value in expected.items()}

    def test_a_haystack_repeated_ten_times_is_one_sample(self):
        """All of a cluster equal: ten samples in each of 20 are worth 20, less the few clusters."""
        hits = [1.0] * 10 + [0.0] * 10
        once = clustered_share(hits, [str(i) for i in range(20)])
        copies = clustered_share(
            [hit for hit in hits for _ in range(10)], [str(i) for i in range(20) for _ in range(10)]
        )
        assert copies["n"] == 200
        assert copies["clusters"] == 20
        assert copies["ci_low"] == pytest.approx(once["ci_low"], abs=0.02)
        assert copies["ci_high"] == pytest.approx(once["ci_high"], abs=0.02)

    def test_all_right_in_few_haystacks_is_worth_less_than_its_samples(self):
        def low(haystacks):
            labels = [str(i) for i in range(haystacks) for _ in range(11)]
            return clustered_share([1.0] * len(labels), labels)["ci_low"]

        # 110 samples of 10 haystacks, 11 alike by half: 110 / (1 + 10 / 2) = 18.3, times
        # (t(109) / t(9))**2; 33 of 3 would be 1.2, and are 3
        worth = 110 / 6 * (1.98197 / 2.26216) ** 2
        assert low(10) == pytest.approx(1 / (1 + Z_95**2 / worth), abs=1e-3)
        assert low(3) == pytest.approx(wilson(3, 3)["ci_low"])
        assert low(1) == pytest.approx(wilson(1, 1)["ci_low"])
        assert low(3) < low(10) < low(30) < wilson(330, 330)["ci_low"]

    def test_one_wrong_answer_lifts_the_lower_bound_little(self):
        """It tells something, beside ten right ones of its haystack: that this haystack does not
        decide them all. By the design effect that is found alone it would tell too much, 0.95."""
        labels = [str(i // 11) for i in range(110)]
        lows = [clustered_share([0.0] * w + [1.0] * (110 - w), labels)["ci_low"] for w in range(6)]
        assert lows[1] == pytest.approx(0.85, abs=0.01)
        assert lows[0] == pytest.approx(0.79, abs=0.01)
        assert all(later < earlier for earlier, later in itertools.pairwise(lows[1:]))

    @given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), min_size=1, max_size=30))
    @example([(2.781342323134e-309, "a")])  # rounding in Wilson's centre is larger than this
    def test_stays_in_bounds_and_never_loses_its_width(self, pairs):
        values, clusters = [v for v, _ in pairs], [c for _, c in pairs]
        found = clustered_share(values, clusters)
        assert 0 <= found["ci_low"] <= found["mean"] <= found["ci_high"] <= 1
        assert found["ci_high"] - found["ci_low"] > 1 / (len(values) + 4)
        mirrored = clustered_share([1 - v for v in values], clusters)
        assert mirrored["ci_low"] == pytest.approx(1 - found["ci_high"], abs=1e-6)

    def test_parts_of_a_sample_count_only_as_far_as_they_differ(self):
        labels = [str(i) for i in range(20)]
        alike = clustered_share([1.0] * 10 + [0.0] * 10, labels, parts=80)  # all four or none
        apart = clustered_share([0.5] * 20, labels, parts=80)  # two of four each time
        assert alike["ci_low"] == pytest.approx(wilson(10, 20)["ci_low"], abs=0.02)
        assert apart["ci_low"] > wilson(10, 20)["ci_low"] + 0.05
        assert apart["ci_low"] < wilson(40, 80)["ci_low"] + 0.01


def test_samples_are_worth_what_their_clusters_bear_out():
    """By hand: 2, 1, 1 and 0 of 2 in four clusters: variance of the mean 4/3 * (1 + 1) / 64 = 1/24,
    design effect 7/24 / 0.25 = 7/6 four times, 1.5 once."""
    four = gather([1, 1, 1, 0, 1, 0, 0, 0], [*"aabbccdd"])
    worth = 8 * 5 / (4 * 7 / 6 + 1.5) * (student_t(7) / student_t(3)) ** 2
    assert worth == pytest.approx(3.58, abs=1e-2)
    assert effective_samples(four, 8, 0.25, telling=4) == 4, "one a cluster at the least"
    ten = gather([1, 1, 1, 0] * 5, [str(i // 2) for i in range(20)])  # 2 and 1 of 2
    # variance 10/9 * 10 * 0.25 / 400 = 1/144: design effect 19/144 / (3/16), below 1 and so 1
    worth = 20 * 6 / (5 * 1 + 1.5) * (student_t(19) / student_t(9)) ** 2
    assert effective_samples(ten, 20, 3 / 16, telling=5) == pytest.approx(worth)
    uneven = gather([1.0] * 12, [*"aaaaaaaaabcd"])  # nine of twelve in one cluster
    assert effective_samples(uneven, 12, 0, telling=0) == pytest.approx(144 / 84)
    many = gather([1, 1, 0, 0] * 50, [str(i // 2) for i in range(200)])
    assert effective_samples(many, 200, 0.25, telling=100) == pytest.approx(100, abs=1.5)


def naive_bootstrap(values, clusters, resamples):
    """Draw documents with replacement, pool their values, take the mean; sort, cut both ends."""
    draw = random.Random(1)
    by_cluster = {c: [v for v, k in zip(values, clusters, strict=True) if k == c] for c in clusters}
    means = []
    for _ in range(resamples):
        pooled = [
            v for c in draw.choices(sorted(by_cluster), k=len(by_cluster)) for v in by_cluster[c]
        ]
        means.append(sum(pooled) / len(pooled))
    means.sort()
    # five documents: Phi(-sqrt(5/4) * t(4) = -3.104) = 0.00095
    return means[int(0.00095 * resamples)], means[int(0.99905 * resamples)]


def test_bootstrap_agrees_with_a_loop_over_drawn_documents():
    values = [1.0, 1.2, 2.0, 3.0, 3.1, 3.2, 4.0, 5.5]
    clusters = ["a", "a", "b", "c", "c", "c", "d", "e"]
    score = clustered_bootstrap(values, clusters, seed=0)
    low, high = naive_bootstrap(values, clusters, 20_000)
    assert score["mean"] == pytest.approx(23 / 8)
    assert score["n"] == 8
    # two estimates of a far quantile from 10,000 draws differ by about 0.05 here
    assert score["ci_low"] == pytest.approx(low, abs=0.15)
    assert score["ci_high"] == pytest.approx(high, abs=0.15)


def test_repeating_a_document_does_not_narrow_its_interval():
    twice = [1.0, 2.0, 3.0, 4.0]
    alone = clustered_bootstrap(twice, list("abcd"), seed=0)
    repeated = clustered_bootstrap(twice * 50, list("abcd") * 50, seed=0)
    as_if_independent = clustered_bootstrap(twice * 50, [str(i) for i in range(200)], seed=0)
    width = {k: s["ci_high"] - s["ci_low"] for k, s in {"a": alone, "r": repeated}.items()}
    assert width["r"] == pytest.approx(width["a"])
    assert as_if_independent["ci_high"] - as_if_independent["ci_low"] < width["r"] / 4


def test_draws_in_blocks_are_the_draws_at_once():
    gathered = gather([float(i) for i in range(30)], [str(i) for i in range(30)])
    at_once = np.random.default_rng([0, 30]).multinomial(30, np.full(30, 1 / 30), 40_000)
    assert len([*in_blocks(40_000, 30)]) == 2
    assert np.allclose(resampled_means(gathered, 0, 40_000), at_once @ gathered.sums / 30)


def test_one_document_has_no_spread():
    score = clustered_bootstrap([1.0, 3.0], ["a", "a"], seed=0)
    assert (score["ci_low"], score["mean"], score["ci_high"]) == (2.0, 2.0, 2.0)


def test_the_seed_decides_the_interval():
    values, clusters = [0.3, 1.7, 2.9, 3.2, 4.0, 4.9, 0.1, 7.0], list("abcdefgh")
    first = clustered_bootstrap(values, clusters, seed=5, resamples=50)
    assert clustered_bootstrap(values, clusters, seed=5, resamples=50) == first
    assert clustered_bootstrap(values, clusters, seed=6, resamples=50) != first


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.integers(0, 12)), min_size=1, max_size=40),
    st.integers(0, 9),
)
def test_bootstrap_stays_within_the_values_where_there_are_enough(pairs, seed):
    values, clusters = [v for v, _ in pairs], [str(c) for _, c in pairs]
    score = clustered_bootstrap(values, clusters, seed, resamples=200)
    slack = 1e-9
    assert score["ci_low"] <= score["mean"] <= score["ci_high"]
    if len({*clusters}) >= FEWEST_CLUSTERS or len({*clusters}) == 1:
        assert min(values) - slack <= score["ci_low"] <= score["ci_high"] <= max(values) + slack


def test_an_interval_of_few_documents_is_students():
    """Two documents at 1 and 2: 1.5 ± 12.706 * sqrt(0.5) / sqrt(2); resampled, [1, 2], which holds
    the truth every other time."""
    two = clustered_bootstrap([1.0, 2.0], ["a", "b"], seed=0)
    assert two["ci_high"] == pytest.approx(1.5 + 12.7062 / 2, abs=1e-3)
    assert two["ci_low"] == pytest.approx(1.5 - 12.7062 / 2, abs=1e-3)
    values = [0.2, 1.0, 1.1, 1.3, 0.7, 2.0, 1.9]
    seven = clustered_bootstrap(values, list("abcdefg"), seed=0)
    half = 2.4469 * np.std(values, ddof=1) / math.sqrt(7)
    assert seven["ci_high"] >= np.mean(values) + half - 1e-4
    eight = clustered_bootstrap([*values, 1.0], list("abcdefgh"), seed=0)
    assert eight["ci_high"] < seven["ci_high"]


@pytest.mark.parametrize("documents", [2, 3, 5, 7])
def test_few_documents_hold_the_truth(documents):
    """400 data sets each: 95 % are 380, three standard errors 13. Resampled alone: 50 to 93 %."""
    generator, held = np.random.default_rng(documents), 0
    for _ in range(400):
        values = generator.normal(0, 1, documents).tolist()
        labels = [str(n) for n in range(documents)]
        score = clustered_bootstrap(values, labels, seed=0, resamples=200)
        held += score["ci_low"] <= 0 <= score["ci_high"]
    assert held >= 367


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], ["a", "b"])])
def test_bootstrap_refuses_unlabelled_values(values, clusters):
    with pytest.raises(ValueError, match="labelled"):
        clustered_bootstrap(values, clusters, seed=0)


def test_few_documents_take_a_farther_quantile():
    assert tail(8) == pytest.approx(0.0057, abs=1e-4)  # Phi(-sqrt(8/7) * 2.3646)
    assert tail(17) == pytest.approx(0.0144, abs=1e-4)
    assert tail(40) == pytest.approx(0.0203, abs=1e-4)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-4)


# ── calibration: how often the interval holds the truth ──────────────────────────────────────


def covered(kind, draw, truth):
    """Share of 200 seeds whose interval, made as in an evaluation, holds `truth`."""
    hits = 0
    for seed in range(200):
        entries = [
            Entry(
                "checkpoint",
                Example(f"{cluster} {i}", cluster, 8, np.zeros(1, np.int32)),
                Value(value),
            )
            for i, (cluster, value) in enumerate(draw(np.random.default_rng(seed)))
        ]
        board = Scoreboard("x", Measure("", True, kind), entries, 8, seed)
        score = board.by_length("checkpoint")["8"]
        hits += score["ci_low"] <= truth <= score["ci_high"]
    return hits / 200


@pytest.mark.parametrize("n", [10, 50])
def test_the_interval_of_a_proportion_is_calibrated(n):
    def draw(generator):
        return [(str(i), float(hit)) for i, hit in enumerate(generator.random(n) < 0.3)]

    assert 0.90 <= covered("proportion", draw, 0.3) <= 0.99


def test_needles_that_share_a_haystack_do_not_narrow_the_interval():
    """20 haystacks of 11 depths, half of the variance between them; plainly counted: 0.55."""

    def draw(generator):
        ease = generator.beta(0.3, 0.7, 20)
        return [(str(i), float(generator.random() < ease[i])) for i in range(20) for _ in range(11)]

    assert 0.90 <= covered("proportion", draw, 0.3) <= 0.99


@pytest.mark.parametrize("documents", [8, 40])
def test_the_interval_over_documents_is_calibrated(documents):
    """Four anchors a document, half of the variance between documents."""

    def draw(generator):
        level = 3 + generator.normal(0, 1, documents)
        return [(str(i), level[i] + generator.normal()) for i in range(documents) for _ in range(4)]

    assert 0.90 <= covered("mean", draw, 3.0) <= 0.99
