"""The mixture: which documents are taken how often, on corpora that a person can add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.duplicates import duplicates_report, first_of_equals
from giraffe_cli.corpus.mix import select
from giraffe_cli.corpus.shares import Mixture
from giraffe_cli.errors import InvalidInput

WINDOW = 100
# web: 90 documents of 10 tokens and one of 100; books: two of 500 and one of 50.
LENGTHS = np.array([10] * 90 + [100] + [500, 500, 50])
SOURCE = np.array([0] * 91 + [1] * 3)
NAMES = ["web", "books"]


def chosen(seed=0, lengths=LENGTHS, source=SOURCE, names=NAMES, **options):
    return select(lengths, source, names, Mixture(**options), WINDOW, seed)


def tokens(selection, source=None) -> int:
    picked = selection.times * LENGTHS
    return int(picked.sum() if source is None else picked[source == SOURCE].sum())


def test_by_default_every_document_is_taken_once():
    selection = chosen()
    assert selection.times.tolist() == [1] * 94
    assert selection.in_passes
    assert selection.report["tokens_selected"] == 2050
    assert selection.report["sources"]["web"]["share"] == pytest.approx(1000 / 2050)


def test_whole_epochs_take_everything_as_often():
    selection = chosen(epochs=3)
    assert set(selection.times.tolist()) == {3}
    assert selection.in_passes


def test_a_budget_takes_a_part_that_the_seed_picks():
    half = chosen(tokens=1000)
    # A document is whole or out: the long ones have 500 tokens, so the total is near, not exact.
    assert abs(tokens(half) - 1000) <= 500
    assert set(half.times.tolist()) == {0, 1}
    assert half.times.tolist() == chosen(tokens=1000).times.tolist()
    assert half.times.tolist() != chosen(tokens=1000, seed=1).times.tolist()


def test_a_budget_beyond_the_passes_allowed_is_refused_with_both_ways_out():
    with pytest.raises(InvalidInput, match="2.44 passes over the .* 1 is allowed") as error:
        chosen(tokens=5000)
    assert error.value.hint == "pass --epochs 3, or --tokens 2050"
    assert tokens(chosen(tokens=4100, epochs=3)) == 4100


def test_weights_set_the_shares_and_the_scarce_source_bounds_the_total():
    selection = chosen(weights={"web": 3, "books": 1})
    # All 1000 tokens of web are three quarters; a quarter is 333, of books 0, 50, 500 or more.
    assert tokens(selection, 0) == 1000
    assert tokens(selection, 1) in (50, 500, 550)
    assert not selection.in_passes
    assert selection.report["sources"]["web"]["share_asked"] == 0.75
    only = chosen(weights={"web": 1, "books": 0})
    assert (tokens(only, 0), tokens(only, 1)) == (1000, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"wbe": 1, "books": 1}}, "`wbe`, which is no source; did you mean `web`"),
        ({"weights": {"web": 1}}, "gives no share to books"),
        ({"weights": {"web": 0, "books": 0}}, "not all of them 0"),
        ({"weights": {"web": 1, "books": 1}, "short_mix": 1.0}, None),
        ({"min_doc_len": 501}, "no training document has 501 tokens"),
        ({"min_doc_len": 101, "weights": {"web": 1, "books": 1}}, "share to web, which has no"),
        ({"min_doc_len": 60, "short_mix": 0.4}, "the corpus has no short documents"),
    ],
)
def test_what_the_documents_cannot_give_is_named(options, message):
    if message is None:  # 50 short tokens of books against 1000 of web: possible, and tiny
        assert tokens(chosen(**options), 1) == 50
        return
    with pytest.raises(InvalidInput, match=message):
        chosen(**options)


def test_weights_and_a_short_mix_that_exclude_each_other_are_named():
    lengths, source = np.array([10, 10, 500]), np.array([0, 0, 1])
    with pytest.raises(InvalidInput, match="web has 20 short and 0 long tokens"):
        chosen(lengths=lengths, source=source, weights={"web": 1, "books": 1}, short_mix=0.1)


def test_short_documents_are_left_out_and_counted():
    selection = chosen(min_doc_len=50)
    assert tokens(selection) == 1150
    assert selection.report["documents_too_short"] == 90
    assert selection.report["tokens_too_short"] == 900


def test_up_sampling_keeps_each_source_and_changes_the_balance_within():
    rng = np.random.default_rng(0)
    lengths = np.concatenate([np.full(9000, 10), np.full(100, 100), np.full(90, 100)])
    lengths = lengths + rng.integers(0, 2, len(lengths))  # no ties by accident
    source = np.array([0] * 9100 + [1] * 90)
    selection = chosen(lengths=lengths, source=source, upsample="long", epochs=4)
    web, books = (selection.report["sources"][name] for name in NAMES)
    before = web["tokens_available"] / (web["tokens_available"] + books["tokens_available"])
    assert web["share"] == pytest.approx(before, abs=0.01)
    # Short tokens count a tenth: 9 short to 1 long becomes 0.9 to 1.
    assert web["long_tokens_selected"] / web["tokens_selected"] == pytest.approx(0.52, abs=0.02)
    assert books["long_tokens_selected"] == books["tokens_selected"]
    assert selection.report["long_from"] == WINDOW
    assert max(web["most_often"], books["most_often"]) <= 4


def test_up_sampling_calls_4096_tokens_long_when_windows_are_longer():
    report = select(
        np.array([5000, 100]), np.array([0, 0]), ["web"], Mixture(upsample="long"), 16384, 0
    ).report
    assert report["long_from"] == 4096


@pytest.mark.parametrize("share", [0.4, 0.1])
def test_a_short_mix_sets_the_share_of_tokens_from_short_documents(share):
    lengths = np.concatenate([np.full(3000, 10), np.full(300, 100)])
    selection = chosen(lengths=lengths, source=np.zeros(3300, dtype=int), short_mix=share)
    short = int((selection.times * lengths)[:3000].sum())
    total = int((selection.times * lengths).sum())
    assert short / total == pytest.approx(share, abs=0.005)
    # 30,000 tokens of each kind: the larger share takes all of its own, the other a part.
    assert total == pytest.approx(30_000 / (1 - share), rel=0.01)


def test_weights_and_a_short_mix_are_met_together():
    lengths = np.tile(np.concatenate([np.full(2000, 10), np.full(200, 100)]), 2)
    source = np.repeat([0, 1], 2200)
    selection = chosen(
        lengths=lengths, source=source, weights={"web": 1, "books": 3}, short_mix=0.4
    )
    picked = selection.times * lengths
    assert picked[lengths < WINDOW].sum() / picked.sum() == pytest.approx(0.4, abs=0.01)
    assert picked[source == 0].sum() / picked.sum() == pytest.approx(0.25, abs=0.01)


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=40),
    st.floats(0.1, 3),
    st.integers(0, 5),
)
def test_no_document_is_taken_twice_before_all_of_its_kind_are_taken_once(lengths, epochs, seed):
    sizes = np.array(lengths)
    source = np.arange(len(lengths)) % 2
    if not sizes.any():
        return
    times = chosen(seed, sizes, source, epochs=epochs).times
    cell = 2 * source + (sizes >= WINDOW)
    for number in range(4):
        of_kind = times[(cell == number) & (sizes > 0)]
        assert len(of_kind) == 0 or of_kind.max() - of_kind.min() <= 1
        assert (of_kind <= np.ceil(epochs)).all()
    assert (times[sizes == 0] == 0).all()


# ── duplicates ────────────────────────────────────────────────────────────────────────────────


def hashes_of(texts: list[str]) -> np.ndarray:
    return np.array([list(text.encode().ljust(16, b"\0")) for text in texts], dtype=np.uint8)


def test_the_first_of_equal_documents_is_kept():
    first = first_of_equals(hashes_of(["a", "b", "a", "c", "b", "a"]))
    assert first.tolist() == [0, 1, 0, 3, 1, 0]
    of_held = np.array([False, False, False, True, False, True])
    report = duplicates_report(first, of_held, np.array([5, 6, 5, 7, 6, 5]), removed=True)
    assert report == {
        **{"documents": 2, "tokens": 11, "removed": True},
        **{"documents_of_held_out": 2, "tokens_of_held_out": 12},
    }
    assert first_of_equals(np.empty((0, 16), dtype=np.uint8)).tolist() == []


def test_hashes_are_compared_to_their_last_byte():
    # Equal first halves; the equal pairs stand apart, so that half a hash would not sort them.
    hashes = np.zeros((6, 16), dtype=np.uint8)
    hashes[:, 15] = [2, 1, 2, 1, 3, 2]
    assert first_of_equals(hashes).tolist() == [0, 1, 0, 1, 4, 0]


@given(st.lists(st.text("ab", max_size=3)))
def test_first_of_equals_agrees_with_list_index(texts):
    texts = [text + "|" for text in texts]
    assert first_of_equals(hashes_of(texts)).tolist() == [texts.index(text) for text in texts]


@given(
    st.lists(st.integers(1, 300), min_size=2, max_size=60),
    st.floats(0.1, 10),
    st.one_of(st.none(), st.sampled_from(["long"])),
    st.floats(0.5, 3),
    st.integers(0, 3),
)
def test_shares_are_met_to_within_a_document_and_passes_are_never_more(
    lengths, weight, upsample, epochs, seed
):
    sizes, source = np.array(lengths), np.arange(len(lengths)) % 2
    given_options = {"weights": {"web": weight, "books": 1.0}, "epochs": epochs}
    if upsample:
        given_options["upsample"] = upsample
    selection = chosen(seed, sizes, source, **given_options)
    asked = selection.report["tokens_asked"]
    for number, name in enumerate(NAMES):
        taken = int((selection.times * sizes)[source == number].sum())
        wanted = weight / (weight + 1) if name == "web" else 1 / (weight + 1)
        # Two cells a source, short and long, and each stops at a whole document.
        cells = [sizes[(source == number) & ((sizes >= WINDOW) == long)] for long in (False, True)]
        allowed = sum(cell.max(initial=0) for cell in cells) / 2
        if int(selection.times.sum()) == 1:  # there is a document, however little was asked for
            allowed *= 2
        assert abs(taken - wanted * asked) <= allowed + 1
    assert selection.times.max() <= np.ceil(epochs)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 20_000))
def test_a_budget_is_met_to_within_a_document_or_refused_with_what_it_needs(lengths, budget):
    sizes = np.array(lengths)
    source = np.zeros(len(sizes), dtype=int)
    if budget > sizes.sum():
        with pytest.raises(InvalidInput, match="passes over the"):
            chosen(0, sizes, source, NAMES[:1], tokens=budget)
        return
    picked = chosen(0, sizes, source, NAMES[:1], tokens=budget)
    total = int((picked.times * sizes).sum())
    halves = [sizes[sizes < WINDOW], sizes[sizes >= WINDOW]]
    is_one = int(picked.times.sum()) == 1  # there is a document, however little was asked for
    assert is_one or abs(total - budget) <= sum(half.max(initial=0) for half in halves) / 2 + 1
