"""Windows from lengths: cases checked by eye, a naive reference, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.pack import Plan, best_fit, plan
from giraffe_cli.corpus.stats import length_histogram, packing_stats, too_little_long

LENGTHS = st.lists(st.integers(0, 70), max_size=40)


def triples(the_plan: Plan) -> list[list[tuple[int, int, int]]]:
    return [[tuple(piece) for piece in pieces] for pieces in the_plan]


@pytest.mark.parametrize(
    ("lengths", "windows"),
    [
        ([4], [[(0, 0, 4)]]),
        ([3, 1], [[(0, 0, 3), (1, 0, 1)]]),
        # 6 = 4 + 2; the 2 waits for the other 2, the 3 for the 1.
        (
            [6, 3, 2, 1],
            [[(0, 0, 4)], [(1, 0, 3), (3, 0, 1)], [(0, 4, 2), (2, 0, 2)]],
        ),
        # Never cut: 3 and 3 do not share a window of 4 though 6 tokens would fill one and a half.
        ([3, 3], [[(0, 0, 3)], [(1, 0, 3)]]),
        ([8], [[(0, 0, 4)], [(0, 4, 4)]]),
        ([0], []),
        ([], []),
    ],
)
def test_small_plans_into_windows_of_four(lengths, windows):
    assert triples(plan(lengths, 4)) == windows


def test_the_tightest_window_is_taken():
    # After 7 and 6 (free: 3 and 4 of 10) the 3 belongs behind the 7, the 4 behind the 6.
    assert best_fit([7, 6, 4, 3], 10).tolist() == [0, 1, 1, 0]


def test_short_pieces_are_dropped_and_counted():
    the_plan = plan([5, 1, 3], 4, min_piece=2)
    assert triples(the_plan) == [[(0, 0, 4)], [(2, 0, 3)]]
    assert (the_plan.dropped_tokens, the_plan.dropped_pieces) == (2, 2)
    assert (the_plan.kept_tokens, the_plan.padding) == (7, 1)


@given(LENGTHS, st.integers(8, 32), st.integers(1, 8))
def test_every_token_lands_in_exactly_one_window(lengths, window, min_piece):
    the_plan = plan(lengths, window, min_piece)
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for pieces in the_plan:
        assert sum(piece.length for piece in pieces) <= window
        for piece in pieces:
            assert piece.length >= min_piece
            seen[piece.document][piece.start : piece.start + piece.length] += 1
    missing = sum(int((counts == 0).sum()) for counts in seen)
    assert all((counts <= 1).all() for counts in seen)
    assert missing == the_plan.dropped_tokens == sum(lengths) - the_plan.kept_tokens
    assert missing == sum(n % window for n in lengths if n % window < min_piece)


@given(LENGTHS, st.integers(1, 32))
def test_only_documents_longer_than_the_window_are_cut_and_into_the_fewest_pieces(lengths, window):
    the_plan = plan(lengths, window)
    pieces = np.bincount(the_plan.document, minlength=len(lengths))
    assert pieces.tolist() == [-(-length // window) for length in lengths]


def naive_best_fit(lengths: list[int], window: int) -> list[int]:
    """The definition, quadratic: the remaining capacities of the windows chosen."""
    free: list[int] = []
    for length in lengths:
        fitting = [capacity for capacity in free if capacity >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(window - length)
    return sorted(free)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 80))
def test_best_fit_agrees_with_the_naive_definition(lengths, window):
    lengths.sort(reverse=True)
    bins = best_fit(lengths, window)
    used = np.bincount(bins, weights=lengths) if lengths else np.array([])
    assert sorted((window - used).astype(int).tolist()) == naive_best_fit(lengths, window)


@given(LENGTHS, st.integers(1, 32), st.integers(0, 5))
def test_shuffling_moves_whole_windows(lengths, window, seed):
    the_plan = plan(lengths, window)
    shuffled = the_plan.shuffled(seed)
    assert sorted(triples(shuffled)) == sorted(triples(the_plan))
    assert triples(the_plan.shuffled(seed)) == triples(shuffled)
    assert shuffled.padding == the_plan.padding


def test_seeds_give_different_orders():
    the_plan = plan([4] * 20, 4)
    assert triples(the_plan.shuffled(0)) != triples(the_plan.shuffled(1))


def test_ordinary_document_lengths_fill_their_windows():
    lengths = np.random.default_rng(0).lognormal(7, 1.5, 20_000).astype(int) + 1
    the_plan = plan(lengths, 4096)
    assert the_plan.padding < 0.002 * the_plan.kept_tokens


def test_statistics_of_a_corpus_checked_by_hand():
    lengths = np.array([6, 3, 4, 1])
    stats = packing_stats(lengths, plan(lengths, 4, min_piece=2))
    assert (stats["tokens_in"], stats["tokens_kept"], stats["tokens_dropped"]) == (14, 13, 1)
    # [4 of the 6], [4], [3], [the other 2]: 16 places for 13 tokens.
    assert (stats["windows"], stats["padding"], stats["fill"]) == (4, 3, 13 / 16)
    assert (stats["documents_split"], stats["documents_longer_than_window"]) == (1, 1)
    assert stats["long_share"] == 10 / 14
    assert stats["longest_document"] == 6


def test_the_histogram_counts_octaves():
    assert length_histogram(np.array([1, 2, 3, 4, 1023, 1024])) == [
        {"from": 1, "below": 2, "documents": 1, "tokens": 1},
        {"from": 2, "below": 4, "documents": 2, "tokens": 5},
        {"from": 4, "below": 8, "documents": 1, "tokens": 4},
        {"from": 512, "below": 1024, "documents": 1, "tokens": 1023},
        {"from": 1024, "below": 2048, "documents": 1, "tokens": 1024},
    ]


@pytest.mark.parametrize(
    ("lengths", "warning"),
    [
        ([3, 2], "no document reaches the window of 4 tokens (the longest has 3, long_share 0.00)"),
        ([4] + [3] * 20, "few documents reach the window of 4 tokens"),
        ([4, 3], None),
    ],
)
def test_a_corpus_of_short_documents_is_named_as_such(lengths, warning):
    stats = packing_stats(np.array(lengths), plan(lengths, 4))
    message = too_little_long(stats)
    assert message is None if warning is None else warning in str(message)
