"""Windows from lengths: cases checked by eye, naive references, and what must always hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.pack import Plan, best_fit, join, plan
from giraffe_cli.corpus.stats import length_histogram, packing_stats, too_little_long

LENGTHS = st.lists(st.integers(0, 70), max_size=40)
RULES = st.sampled_from(["best-fit", "concat", "one"])


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


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        (
            {"rule": "concat"},
            [[(0, 0, 4)], [(0, 4, 2), (1, 0, 2)], [(1, 2, 1), (2, 0, 2), (3, 0, 1)]],
        ),
        # Whole documents shorter than two tokens go; the 1 left of document 1 continues it.
        (
            {"rule": "concat", "min_piece": 2},
            [[(0, 0, 4)], [(0, 4, 2), (1, 0, 2)], [(1, 2, 1), (2, 0, 2)]],
        ),
        ({"rule": "one"}, [[(0, 0, 4)], [(0, 4, 2)], [(1, 0, 3)], [(2, 0, 2)], [(3, 0, 1)]]),
        (
            {"rule": "one", "drop_tail": True},
            [[(0, 0, 4)], [(1, 0, 3)], [(2, 0, 2)], [(3, 0, 1)]],
        ),
        # Among windows with equal room the one opened last is taken: the 1 joins document 1.
        ({"overlap": 1}, [[(0, 0, 4)], [(0, 3, 3)], [(1, 0, 3), (3, 0, 1)], [(2, 0, 2)]]),
    ],
)
def test_rules_on_documents_of_6_3_2_1_tokens(options, windows):
    assert triples(plan([6, 3, 2, 1], 4, **options)) == windows


def test_the_tightest_window_is_taken():
    # After 7 and 6 (free: 3 and 4 of 10) the 3 belongs behind the 7, the 4 behind the 6.
    assert best_fit([7, 6, 4, 3], 10).tolist() == [0, 1, 1, 0]


def test_short_pieces_are_dropped_and_counted():
    the_plan = plan([5, 1, 3], 4, min_piece=2)
    assert triples(the_plan) == [[(0, 0, 4)], [(2, 0, 3)]]
    assert (the_plan.dropped_tokens, the_plan.dropped_pieces) == (2, 2)
    assert (the_plan.kept_tokens, the_plan.padding) == (7, 1)


def counts_of(the_plan: Plan, lengths: list[int]) -> list[np.ndarray]:
    """How often each token of each document lies in a window."""
    seen = [np.zeros(length, dtype=int) for length in lengths]
    for piece in (piece for pieces in the_plan for piece in pieces):
        seen[piece.document][piece.start : piece.start + piece.length] += 1
    return seen


@given(LENGTHS, st.integers(8, 32), st.integers(1, 8), RULES)
def test_every_token_lands_in_exactly_one_window(lengths, window, min_piece, rule):
    the_plan = plan(lengths, window, min_piece, rule)
    for pieces in the_plan:
        assert 0 < sum(piece.length for piece in pieces) <= window
        assert all(piece.length >= min_piece for piece in pieces) or rule == "concat"
    seen = counts_of(the_plan, lengths)
    assert all((counts <= 1).all() for counts in seen)
    missing = sum(int((counts == 0).sum()) for counts in seen)
    assert missing == the_plan.dropped_tokens == sum(lengths) - the_plan.kept_tokens
    short = [n if rule == "concat" else n % window for n in lengths]
    assert missing == sum(n for n in short if n < min_piece)


@given(LENGTHS, st.integers(1, 32), RULES)
def test_with_no_shortest_piece_nothing_at_all_is_lost(lengths, window, rule):
    the_plan = plan(lengths, window, rule=rule)
    assert all((counts == 1).all() for counts in counts_of(the_plan, lengths))
    assert the_plan.kept_tokens == sum(lengths)


@given(LENGTHS, st.integers(2, 32), st.integers(0, 31), st.sampled_from(["best-fit", "one"]))
def test_overlap_repeats_the_end_of_each_piece_and_is_counted_once(lengths, window, overlap, rule):
    overlap = min(overlap, window - 1)
    the_plan = plan(lengths, window, rule=rule, overlap=overlap)
    seen = counts_of(the_plan, lengths)
    assert all((counts >= 1).all() for counts in seen)
    assert the_plan.kept_tokens == sum(lengths)
    assert the_plan.repeated_tokens == sum(int((counts - 1).sum()) for counts in seen)
    assert int(the_plan.length.sum()) == the_plan.kept_tokens + the_plan.repeated_tokens
    starts = {(p.document, p.start) for pieces in the_plan for p in pieces}
    stride = window - overlap
    for document, length in enumerate(lengths):
        of_it = sorted(start for number, start in starts if number == document)
        assert of_it == list(range(0, max(1, length - overlap), stride) if length else [])


@given(LENGTHS, st.integers(8, 32), st.integers(1, 7), st.integers(1, 8))
def test_with_overlap_kept_and_dropped_still_add_up(lengths, window, overlap, min_piece):
    the_plan = plan(lengths, window, min_piece, overlap=overlap)
    missing = sum(int((counts == 0).sum()) for counts in counts_of(the_plan, lengths))
    assert missing == the_plan.dropped_tokens == sum(lengths) - the_plan.kept_tokens


@given(LENGTHS, st.integers(1, 32))
def test_concat_fills_every_window_but_the_last_and_keeps_the_order(lengths, window):
    the_plan = plan(lengths, window, rule="concat")
    fills = [sum(piece.length for piece in pieces) for pieces in the_plan]
    assert all(fill == window for fill in fills[:-1])
    pieces = [piece for window_pieces in the_plan for piece in window_pieces]
    stream = [(p.document, p.start + k) for p in pieces for k in range(p.length)]
    assert stream == [(d, k) for d, length in enumerate(lengths) for k in range(length)]


@given(LENGTHS, st.integers(1, 32), st.booleans())
def test_one_document_a_window_and_tails_are_dropped_only_when_asked(lengths, window, drop_tail):
    the_plan = plan(lengths, window, rule="one", drop_tail=drop_tail)
    assert all(len(pieces) == 1 for pieces in the_plan)
    tails = sum(max(0, length - window) for length in lengths)
    assert the_plan.dropped_tokens == (tails if drop_tail else 0)
    windows = [min(1, n) if drop_tail else -(-n // window) for n in lengths]
    assert np.bincount(the_plan.document, minlength=len(lengths)).tolist() == windows


def fewest_windows(lengths: list[int], window: int) -> int:
    """The optimum by trying every placement; lengths of at most eight pieces."""
    best = len(lengths)

    def place(index: int, free: list[int]) -> None:
        nonlocal best
        if len(free) >= best:
            return
        if index == len(lengths):
            best = len(free)
            return
        for number in range(len(free)):
            if free[number] >= lengths[index]:
                left = free[number] - lengths[index]
                place(index + 1, [*free[:number], left, *free[number + 1 :]])
        place(index + 1, [*free, window - lengths[index]])

    place(0, [])
    return best


@given(st.lists(st.integers(1, 20), min_size=1, max_size=7), st.integers(20, 30))
def test_best_fit_needs_hardly_more_windows_than_the_optimum(lengths, window):
    optimum = fewest_windows(sorted(lengths, reverse=True), window)
    # 11/9 of the optimum and 6/9: the bound of best-fit decreasing (Dosa 2007, Johnson 1974).
    assert optimum <= len(plan(lengths, window)) <= (11 * optimum + 6) / 9


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
    assert (stats["long_share"], stats["half_long_share"]) == (10 / 14, 13 / 14)


def test_statistics_of_concat_count_the_documents_it_cuts():
    lengths = np.array([3, 3, 3])
    stats = packing_stats(lengths, plan(lengths, 4, rule="concat"))
    # 3+1 | 2+2 | 1: the second and the third are cut though they fit.
    assert (stats["windows"], stats["documents_split"]) == (3, 2)
    assert (stats["documents_longer_than_window"], stats["tokens_kept"]) == (0, 9)


def test_statistics_count_a_document_as_often_as_it_is_taken_and_overlap_once():
    lengths, times = np.array([6, 3]), np.array([1, 2], dtype=np.int32)
    taken = plan(np.repeat(lengths, times), 4, overlap=1)
    renumbered = replace(taken, document=np.array([0, 1, 1])[taken.document])
    stats = packing_stats(lengths, renumbered, times)
    assert (stats["tokens_in"], stats["tokens_kept"], stats["tokens_repeated"]) == (12, 12, 1)
    # [4 of the 6], [its last 3], [3], [3]: 13 stored tokens in 16 places.
    assert (stats["windows"], stats["padding"], stats["fill"]) == (4, 3, 13 / 16)
    assert stats["documents_split"] == 1
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
        (
            [3, 2],
            "no document reaches the window of 4 tokens (the longest has 3, long_share 0.00, "
            "1.00 reach",
        ),
        ([4] + [3] * 20, "few documents reach the window of 4 tokens"),
        ([4, 3], None),
    ],
)
def test_a_corpus_of_short_documents_is_named_as_such(lengths, warning):
    stats = packing_stats(np.array(lengths), plan(lengths, 4))
    message = too_little_long(stats)
    assert message is None if warning is None else warning in str(message)


# ── every option at once ─────────────────────────────────────────────────────────────────────


@st.composite
def options(draw) -> dict:
    """Arguments of `plan` that go together: any rule, overlap, shortest piece, dropped tails."""
    window, rule = draw(st.integers(1, 32)), draw(RULES)
    return {
        "window": window,
        "rule": rule,
        "min_piece": draw(st.integers(1, window)),
        "overlap": 0 if rule == "concat" else draw(st.integers(0, window - 1)),
        "drop_tail": rule == "one" and draw(st.booleans()),
    }


def naive_drops(length: int, window: int, rule, min_piece, overlap, drop_tail) -> set[int]:
    """Tokens of one document that no window gets: each piece of it, walked by the definition."""
    if rule == "concat":
        return set(range(length)) if length < min_piece else set()
    kept: set[int] = set()
    start = end = 0
    while end < length:
        end = min(start + window, length)
        if end - start >= min_piece and not (drop_tail and start):
            kept |= set(range(start, end))
        start += window - overlap
    return set(range(length)) - kept


@given(LENGTHS, options())
def test_every_token_lies_in_one_window_or_is_counted(lengths, chosen):
    the_plan = plan(lengths, **chosen)
    for pieces in the_plan:
        assert 0 < sum(piece.length for piece in pieces) <= chosen["window"]
        assert all(p.start >= 0 and p.start + p.length <= lengths[p.document] for p in pieces)
    seen = counts_of(the_plan, lengths)
    for length, counts in zip(lengths, seen, strict=True):
        assert set(np.flatnonzero(counts == 0)) == naive_drops(length, **chosen)
    assert the_plan.dropped_tokens == sum(int((counts == 0).sum()) for counts in seen)
    assert the_plan.kept_tokens == sum(int((counts > 0).sum()) for counts in seen)
    assert the_plan.repeated_tokens == sum(
        int(counts.sum() - (counts > 0).sum()) for counts in seen
    )


@given(LENGTHS, options())
def test_a_document_that_fits_is_never_cut_but_by_concat(lengths, chosen):
    the_plan = plan(lengths, **chosen)
    whole = [n for n in lengths if chosen["min_piece"] <= n <= chosen["window"]]
    if chosen["rule"] != "concat":
        taken = [(p.document, p.length) for pieces in the_plan for p in pieces]
        assert sum(lengths[document] == length for document, length in taken) == len(whole)


@pytest.mark.parametrize(
    ("lengths", "windows"),
    [
        # Both rules agree while one window is open at a time.
        ([5, 5, 5, 5], [[5, 5], [5, 5]]),
        ([10, 10], [[10], [10]]),
        ([9, 1, 9, 1], [[9, 1], [9, 1]]),
        # Two windows with room for the 3: the tighter one, which first-fit would take too.
        ([7, 6, 3], [[7, 3], [6]]),
        # First-fit puts the 2 behind the 6 (the 4 has filled it) or opens; here it is exact.
        ([6, 5, 4, 3, 2], [[6, 4], [5, 3, 2]]),
        # First-fit would put the 3 behind the 6; best-fit sees that the 7 has exactly 3 left.
        ([7, 6, 3, 2, 2], [[7, 3], [6, 2, 2]]),
    ],
)
def test_best_fit_decreasing_by_hand_into_windows_of_ten(lengths, windows):
    packed = [[piece.length for piece in pieces] for pieces in plan(lengths, 10)]
    assert packed == windows


@given(st.lists(LENGTHS, min_size=1, max_size=4), st.integers(2, 32), st.integers(0, 3))
def test_joined_plans_are_their_windows_one_after_the_other(each, window, overlap):
    plans = [plan(lengths, window, 2, overlap=min(overlap, window - 1)) for lengths in each]
    joined = join(plans)
    assert triples(joined) == [pieces for one in plans for pieces in triples(one)]
    for name in ("dropped_tokens", "dropped_pieces", "repeated_tokens", "kept_tokens", "padding"):
        assert getattr(joined, name) == sum(getattr(one, name) for one in plans)
