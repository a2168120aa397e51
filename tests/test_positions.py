"""The contract every position scheme meets, and what each scheme draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.scheme import make_positions, position_schemes

every_scheme = pytest.mark.parametrize("name", sorted(position_schemes()))


def draw(name: str, length: int, target_length: int, seed: int, **knobs) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return make_positions(name, knobs).position_ids(length, target_length, generator)


@every_scheme
@given(length=st.integers(1, 300), beyond=st.integers(0, 5000), seed=st.integers(0, 2**32))
def test_positions_increase_strictly_below_the_target(name, length, beyond, seed):
    positions = draw(name, length, length + beyond, seed)
    assert positions.dtype in (np.int64, np.float64)
    assert positions.shape == (length,)
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] < length + beyond


@every_scheme
def test_same_seed_gives_same_positions(name):
    np.testing.assert_array_equal(draw(name, 64, 512, 7), draw(name, 64, 512, 7))


@every_scheme
def test_another_seed_gives_other_positions_unless_they_are_plain(name):
    same = np.array_equal(draw(name, 64, 512, 7), draw(name, 64, 512, 8))
    assert same == (name == "plain")


@every_scheme
@pytest.mark.parametrize("length", [1, 2, 4096])
def test_a_million_positions(name, length):
    positions = draw(name, length, 2**20, 0)
    assert (np.diff(positions) > 0).all()
    assert 0 <= positions[0] <= positions[-1] < 2**20


@every_scheme
def test_scheme_is_documented(name):
    scheme = position_schemes()[name]
    assert scheme.summary
    assert scheme.source
    for field in dataclasses.fields(scheme):
        assert field.metadata["doc"]
        with pytest.raises(InvalidInput, match=rf"{field.name} is -1, must lie in \["):
            make_positions(name, {field.name: -1})


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(InvalidInput, match="unknown position scheme `pos`") as caught:
        make_positions("pos")
    assert "pose" in caught.value.hint


def test_plain_counts():
    assert draw("plain", 5, 4096, 0).tolist() == [0, 1, 2, 3, 4]


# ── pose ─────────────────────────────────────────────────────────────────────────────────────


@given(length=st.integers(2, 200), beyond=st.integers(0, 5000), seed=st.integers(0, 2**32))
def test_pose_is_two_chunks_the_first_at_zero(length, beyond, seed):
    positions = draw("pose", length, length + beyond, seed)
    skips = np.diff(positions) - 1
    assert positions[0] == 0
    assert np.count_nonzero(skips) <= 1
    assert skips.max() <= beyond
    if skips.any():
        assert 1 <= int(skips.argmax()) + 1 <= (length + 1) // 2


def test_pose_visits_every_first_chunk_and_every_skip():
    """Pieces of 6 for a target of 10: chunks of 1, 2 or 3 tokens, skips of 0 to 4."""
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        skips = np.diff(make_positions("pose").position_ids(6, 10, generator)) - 1
        seen.add((int(skips.argmax()) + 1, int(skips.max())) if skips.any() else (0, 0))
    assert seen == {(0, 0), *((first, skip) for first in (1, 2, 3) for skip in (1, 2, 3, 4))}


def test_pose_skips_are_uniform():
    """u ~ U{0 … 1000}: the mean of 4,000 draws is 500 with a standard error of 4.6."""
    generator = np.random.default_rng(1)
    pose = make_positions("pose")
    last = [pose.position_ids(24, 1024, generator)[-1] - 23 for _ in range(4000)]
    assert abs(np.mean(last) - 500) < 20
    assert min(last) < 5
    assert max(last) > 995


@given(
    length=st.integers(1, 200),
    chunks=st.integers(2, 64),
    beyond=st.integers(0, 5000),
    seed=st.integers(0, 2**32),
)
def test_pose_has_as_many_chunks_as_asked(length, chunks, beyond, seed):
    """All but the last have (n+1)/k tokens at most, a piece of fewer than k tokens one each."""
    positions = draw("pose", length, length + beyond, seed, chunks=chunks)
    chunks = min(chunks, length)
    skips = np.diff(positions) - 1
    starts = np.flatnonzero(skips) + 1
    assert positions[0] == 0
    assert (skips >= 0).all()
    assert skips.sum() <= beyond
    assert len(starts) <= chunks - 1
    if len(starts) == chunks - 1:
        assert (np.diff(starts, prepend=0) <= (length + 1) // chunks).all()


def test_three_chunks_visit_every_split_and_every_pair_of_shifts():
    """Pieces of 5 for a target of 7: chunks of 1 or 2 tokens, then the rest; shifts up to 2."""
    generator = np.random.default_rng(0)
    pose = make_positions("pose", {"chunks": 3})
    seen = {tuple(pose.position_ids(5, 7, generator).tolist()) for _ in range(2000)}
    expected = set()
    for first in (1, 2):
        for second in (1, 2):
            for shift, last in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)):
                shifts = np.repeat([0, shift, last], [first, second, 5 - first - second])
                expected.add(tuple((np.arange(5) + shifts).tolist()))
    assert seen == expected


def test_skips_between_three_chunks_are_alike():
    """Two sorted draws from 0 to 1000: 333 each on average, standard error 236/√4000 = 3.7."""
    generator = np.random.default_rng(1)
    pose = make_positions("pose", {"chunks": 3})
    drawn = [pose.position_ids(24, 1024, generator) for _ in range(4000)]
    skips = np.array([np.sort(np.diff(ids) - 1)[-2:] for ids in drawn])
    last = np.array([ids[-1] for ids in drawn]) - 23
    assert last.mean() == pytest.approx(667, abs=15)
    assert skips.sum(axis=1).tolist() == last.tolist()
    assert last.min() < 50
    assert last.max() == 1000


def test_pose_without_room_is_plain():
    assert draw("pose", 1, 64, 3).tolist() == [0]
    assert draw("pose", 8, 8, 3).tolist() == list(range(8))


# ── randomised ───────────────────────────────────────────────────────────────────────────────


def test_randomised_steps_are_uniform_with_the_mean_that_reaches_the_target():
    """64 tokens for 1024: U(0, 32), before the pieces that would pass the target are shrunk."""
    drawn = [draw("randomised", 64, 1024, seed) for seed in range(400)]
    steps = np.array([np.diff(ids, prepend=0) for ids in drawn])
    # A sum of 65 steps has mean 1040 and deviation 74, so 59 % of the pieces are shrunk, by 5 %.
    assert steps.mean() == pytest.approx(15.4, abs=0.3)
    assert steps.min() < 0.02
    assert 31.5 < steps.max() <= 32
    quarters = np.histogram(steps, bins=4, range=(0, 32))[0] / steps.size
    assert quarters[:3] == pytest.approx(0.25, abs=0.015)
    assert 0.2 < quarters[3] < 0.25
    ends = np.array([ids[-1] for ids in drawn])
    assert ends.max() > 1023
    assert ends.mean() == pytest.approx(990, abs=20)


def test_randomised_without_room_keeps_a_mean_step_of_one():
    """Giraffe's own case: U(0, 2) steps in a window as long as the target."""
    ids = draw("randomised", 4096, 4096, 0)
    steps = np.diff(ids)
    assert steps.mean() == pytest.approx(1, abs=0.03)
    assert steps.max() == pytest.approx(2, abs=0.05)
    assert ids[-1] < 4096


# ── sorted sample ────────────────────────────────────────────────────────────────────────────


def test_sorted_sample_visits_every_subset_equally():
    """The 10 ways to take 2 of 5: 400 each of 4,000, standard deviation 19."""
    generator = np.random.default_rng(0)
    scheme = make_positions("sorted-sample")
    drawn = [tuple(scheme.position_ids(2, 5, generator).tolist()) for _ in range(4000)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert sorted(counts) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert min(counts.values()) > 320
    assert max(counts.values()) < 480


def test_sorted_sample_of_everything_is_plain():
    assert draw("sorted-sample", 9, 9, 0).tolist() == list(range(9))
