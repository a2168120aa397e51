"""The contract every position scheme meets, and PoSE's two chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.scheme import make_positions, position_schemes

every_scheme = pytest.mark.parametrize("name", sorted(position_schemes()))


def draw(name: str, length: int, target_length: int, seed: int) -> np.ndarray:
    return make_positions(name).position_ids(length, target_length, np.random.default_rng(seed))


@every_scheme
@given(length=st.integers(1, 300), beyond=st.integers(0, 5000), seed=st.integers(0, 2**32))
def test_positions_increase_strictly_below_the_target(name, length, beyond, seed):
    positions = draw(name, length, length + beyond, seed)
    assert positions.dtype == np.int64
    assert positions.shape == (length,)
    assert (np.diff(positions) > 0).all()
    assert positions[0] >= 0
    assert positions[-1] < length + beyond


@every_scheme
def test_same_seed_gives_same_positions(name):
    np.testing.assert_array_equal(draw(name, 64, 512, 7), draw(name, 64, 512, 7))


@every_scheme
def test_scheme_is_documented(name):
    scheme = position_schemes()[name]
    assert scheme.summary
    assert scheme.source


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(InvalidInput, match="unknown position scheme `pos`") as caught:
        make_positions("pos")
    assert "pose" in caught.value.hint


def test_plain_counts():
    assert draw("plain", 5, 4096, 0).tolist() == [0, 1, 2, 3, 4]


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


def test_pose_without_room_is_plain():
    assert draw("pose", 1, 64, 3).tolist() == [0]
    assert draw("pose", 8, 8, 3).tolist() == list(range(8))
