"""Which of a step's windows each process trains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from conftest import load_script
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.train.balance import shared_out


@st.composite
def steps(draw):
    """(costs of a step's windows, processes that divide their number)."""
    processes = draw(st.integers(1, 8))
    many = processes * draw(st.integers(1, 6))
    costs = st.lists(st.floats(0, 1e12), min_size=many, max_size=many)
    return draw(costs), processes


@given(steps())
def test_every_window_is_trained_by_one_process_and_each_trains_as_many(step):
    costs, processes = step
    shares = shared_out(costs, processes)
    assert sorted(itertools.chain(*shares)) == list(range(len(costs)))
    assert {len(share) for share in shares} == {len(costs) // processes}


@given(steps())
def test_no_process_has_more_to_do_than_another_by_more_than_one_window(step):
    costs, processes = step
    sums = [math.fsum(costs[place] for place in share) for share in shared_out(costs, processes)]
    assert max(sums) - min(sums) <= max(costs) * (1 + 1e-9)


@given(steps())
def test_processes_that_wait_for_each_other_meet_windows_alike(step):
    """Where each layer waits for all: none of a round is cheaper than one of the next round."""
    costs, processes = step
    if processes > 1:
        shares = shared_out(costs, processes)
        rounds = [[costs[n] for n in places] for places in zip(*shares, strict=True)]
        assert all(min(now) >= max(later) for now, later in itertools.pairwise(rounds))


@pytest.mark.parametrize(
    ("costs", "processes", "shares"),
    [
        ([3, 3, 1, 9, 8, 1], 2, [[3, 1, 5], [4, 0, 2]]),
        ([1, 1, 1, 1], 2, [[0, 2], [1, 3]]),  # alike: they go round
        ([1, 9, 2, 8], 1, [[0, 1, 2, 3]]),  # alone: as they stand
        ([1, 2], 2, [[1], [0]]),
    ],
)
def test_named_ends(costs, processes, shares):
    assert shared_out(costs, processes) == shares


def test_one_long_document_in_four_windows_costs_its_process_the_others():
    """9 + 1 against 4 + 4: round robin has 9 + 4 against 1 + 4."""
    shares = shared_out([9, 1, 4, 4], 2)
    assert [sum([9, 1, 4, 4][place] for place in share) for share in shares] == [10, 8]


def test_the_waiting_is_counted_against_windows_dealt_in_turn():
    """Two processes, steps of four windows, one long one among them all: 9 + 1 against 1 + 1 when
    they go round and when they are shared out; a mean of 6."""
    costs = np.array([9.0, 1.0, 1.0, 1.0])
    found = load_script("window_shares").waiting(costs, costs, 2, 4)
    assert found["in_turn_alone"] == found["shared_out_alone"] == round(10 / 6, 3)
    assert found["in_turn_together"] == found["shared_out_together"] == round(10 / 6, 3)
    costs = np.array([9.0, 9.0, 1.0, 1.0] * 50)
    found = load_script("window_shares").waiting(costs, costs, 2, 4)
    assert found["shared_out_alone"] < found["in_turn_alone"]
    assert found["shared_out_together"] < found["in_turn_together"]
