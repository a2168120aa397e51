"""Prompts of an exact length, and what is ranked after them."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.measures import RANKED_AGAINST
from giraffe_cli.evals.prompt import (
    check_filled,
    continuation,
    fill,
    fill_in,
    ranked,
    retrieval_scores,
    share_found,
    usual,
    usual_first,
)

LENGTHS = st.integers(600, 5000)
SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=30)


class Growing:
    """Prompts of `fixed` tokens and units whose sizes repeat; counts how often one is built."""

    def __init__(self, fixed, sizes):
        self.fixed, self.sizes, self.built = fixed, sizes, 0

    def size(self, units):
        whole, rest = divmod(units, len(self.sizes))
        return self.fixed + whole * sum(self.sizes) + sum(self.sizes[:rest])

    def __call__(self, units):
        self.built += 1
        return [0] * self.size(units)


class TestFill:
    @given(st.integers(0, 50), SIZES, LENGTHS, st.integers(0, 60), st.integers(0, 3000))
    def test_fits_and_leaves_less_than_a_usual_unit_or_not_room_for_one_more(
        self, fixed, sizes, length, answer, start
    ):
        build = Growing(fixed, sizes)
        prompt, units = fill(build, length, answer, "t", start)
        slack = length - answer - len(prompt)
        assert len(prompt) == build.size(units)
        assert slack >= 0
        usual_unit = (len(prompt) - build.size(1)) / max(1, units - 1)
        assert build.size(units + 1) > length - answer or slack < usual_unit

    @given(st.integers(0, 50), SIZES, st.integers(600, 5000), st.integers(0, 3000))
    def test_takes_few_builds(self, fixed, sizes, length, start):
        build = Growing(fixed, sizes)
        fill(build, length, 10, "t", start)
        assert build.built < 40

    @given(
        st.lists(st.sampled_from([0, 0, 1, 1, 2, 60]), min_size=3, max_size=40).filter(sum),
        st.integers(1000, 4000),
        st.integers(0, 500),
    )
    def test_terminates_for_irregular_sizes(self, sizes, length, start):
        """Some units add nothing, some more than 3 % of the length: fills, or says it cannot."""
        build = Growing(5, sizes)
        try:
            prompt, _ = fill(build, length, 0, "t", start)
        except InvalidInput as refused:
            assert f"of {length} tokens" in refused.message  # noqa: PT017
        else:
            assert 0.97 * length <= len(prompt) <= length

    @given(st.integers(0, 50), SIZES, LENGTHS, st.integers(0, 3000), st.integers(0, 90))
    def test_no_more_than_what_may_stay_empty_stays_empty(self, fixed, sizes, length, start, spare):
        build = Growing(fixed, sizes)
        prompt, units = fill(build, length, 10, "t", start, min(spare, length // 100))
        assert 0 <= length - 10 - len(prompt) < max(spare, max(sizes) + 1)
        assert len(prompt) == build.size(units)

    @pytest.mark.parametrize("sizes", [[0], [0, 0, 0]])
    def test_filler_without_tokens_is_refused(self, sizes):
        build = Growing(50, sizes)
        with pytest.raises(InvalidInput, match="fill 50 of 1000 tokens"):
            fill(build, 1000, 0, "t")
        assert build.built < 40

    def test_a_start_of_a_similar_prompt_saves_builds(self):
        cold, warm = Growing(20, [6, 7, 8]), Growing(21, [6, 7, 8])
        _, units = fill(cold, 16_384, 24, "t")
        fill(warm, 16_384, 24, "t", units)
        assert warm.built <= 4

    def test_a_template_that_does_not_fit_is_refused_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="length 100 is too short.*answer take 130 tokens"):
            fill(Growing(100, [10]), 100, 20, "t")

    def test_units_too_large_to_fill_97_percent_are_refused_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="fill 912 of 1000 tokens, 97% to 100%"):
            fill(Growing(0, [300]), 1000, 12, "t")

    @pytest.mark.parametrize("used", [970, 1000])
    def test_97_to_100_percent_are_full(self, used):
        check_filled(used, 1000, "t")

    @pytest.mark.parametrize("used", [969, 1001])
    def test_less_or_more_is_not(self, used):
        with pytest.raises(InvalidInput, match=f"fill {used} of 1000"):
            check_filled(used, 1000, "t")


class TestFillIn:
    def build(self, units, small):
        return [1] * (50 + 100 * units) + [2] * (7 * small)

    def test_small_units_fill_what_large_ones_leave_empty(self):
        prompt, units = fill_in(self.build, 1030, 0, "t")
        assert (units, prompt.count(2)) == (9, 77)  # 950 tokens and 11 small ones: 1027 of 1030

    def test_none_where_large_ones_fill_97_percent(self):
        prompt, units = fill_in(self.build, 10_060, 0, "t")
        assert (units, prompt.count(2)) == (100, 0)

    @given(st.integers(160, 5000), st.integers(0, 60))
    def test_always_fills(self, length, answer):
        if 0.03 * length < 7 or length - answer < 150:
            return
        prompt, units = fill_in(self.build, length, answer, "t")
        assert 0.97 * length <= len(prompt) + answer <= length
        assert len(self.build(units + 1, 0)) + answer > length


def spell(value):
    """A token a letter."""
    return tuple(map(ord, value))


def letters(size):
    return lambda generator: "".join(map(chr, (97 + generator.integers(26, size=size)).tolist()))


def rng(seed=0):
    return np.random.default_rng(seed)


class TestRanked:
    def test_one_answer_and_nine_wrong_ones_of_as_many_tokens(self):
        found = ranked(["dog"], [], letters(3), spell, rng())
        assert found[0] == spell("dog")
        assert [len(candidate) for candidate in found] == [3] * 10
        assert len({*found}) == 10

    def test_those_that_stand_in_the_context_come_first(self):
        found = ranked(["dog"], ["cat", "mouse", "cow", "dog", "cat"], letters(3), spell, rng())
        assert {*found[1:3]} == {spell("cat"), spell("cow")}
        assert len(found) == 10

    def test_of_many_in_the_context_nine_are_drawn(self):
        pool = [f"c{one}{other}" for one in "abcdef" for other in "abcdef"]
        one, other = (ranked(["dog"], pool, letters(3), spell, rng(seed)) for seed in (0, 1))
        assert {*one[1:]} | {*other[1:]} <= {spell(value) for value in pool}
        assert one[1:] != other[1:]

    @pytest.mark.parametrize("seed", range(5))
    def test_several_answers_have_nine_for_each_token_count_and_the_list_last(self, seed):
        draw = lambda generator: letters(int(generator.integers(2, 5)))(generator)  # noqa: E731
        found = ranked(["ox", "dog", "cat"], [], draw, spell, rng(seed), "+")
        assert found[:3] == (spell("ox"), spell("dog"), spell("cat"))
        assert found[-1] == spell("ox+dog+cat")
        wrong = found[3:-1]
        assert Counter(map(len, wrong)) == {2: RANKED_AGAINST, 3: RANKED_AGAINST}
        assert not {*wrong} & {*found[:3]}

    def test_an_answer_without_nine_of_its_size_is_our_fault_and_said(self):
        with pytest.raises(GiraffeError, match="no 9 wrong answers of as many tokens as unique"):
            ranked(["unique"], [], letters(3), spell, rng())


class TestUsual:
    def test_takes_a_value_of_the_commonest_token_count(self):
        def draw(generator):
            return "rare-one" if generator.random() < 0.2 else letters(3)(generator)

        assert {len(usual(draw, spell, rng(seed))) for seed in range(50)} == {3}

    @pytest.mark.parametrize("seed", range(20))
    def test_the_first_one_drawn_stays_where_it_has_that_count(self, seed):
        def draw(generator):
            return "rare-one" if generator.random() < 0.2 else letters(3)(generator)

        plain, generator = rng(seed), rng(seed)
        first, found = draw(plain), usual_first(draw, spell, generator)
        assert len(found) == 3
        assert first in (found, "rare-one")
        assert generator.random() == plain.random(), "what is drawn next is what was"


class TestContinuation:
    def test_is_what_the_value_adds_to_the_text_before(self):
        material = SimpleNamespace(encode=lambda text: [len(word) for word in text.split()])
        assert continuation(material, "what is it", " a cat") == (1, 3)

    def test_a_value_that_melts_into_the_text_before_is_a_text_of_its_own(self):
        material = SimpleNamespace(encode=lambda text: [len(word) for word in text.split()])
        assert continuation(material, "what is it", "ty") == (2,)


def outcome(nll, greedy, text=""):
    return Outcome(np.zeros(0), text, tuple(nll), tuple(greedy))


def example(answers, sizes):
    return Example(
        "k",
        "c",
        8,
        np.zeros(4, np.int32),
        answers=answers,
        candidates=tuple((1,) * n for n in sizes),
    )


class TestRetrievalScores:
    @pytest.mark.parametrize(
        ("nll", "won"),
        [([1.0, 2.0, 3.0], 1), ([2.0, 2.0, 3.0], 0), ([2.5, 2.0, 3.0], 0)],
    )
    def test_ranked_is_more_probable_than_each_and_not_as_probable(self, nll, won):
        scores = retrieval_scores(example(("a",), (1, 1, 1)), outcome(nll, [False] * 3), 0.0)
        assert scores["ranked"].value == won

    def test_exact_is_that_of_the_answer(self):
        one = example(("a",), (1, 1))
        assert retrieval_scores(one, outcome([1, 2], [True, False]), 0.0)["exact"].value == 1
        assert retrieval_scores(one, outcome([1, 2], [False, True]), 0.0)["exact"].value == 0

    def test_of_several_each_is_ranked_with_those_of_its_size_and_the_list_is_exact(self):
        several = example(("a", "bb"), (1, 2, 1, 2, 3))
        scores = retrieval_scores(several, outcome([1, 6, 2, 5, 9], [1, 1, 0, 0, 0]), 0.5)
        assert (scores[""].value, scores["ranked"].value, scores["exact"].value) == (0.5, 0.5, 0)

    def test_it_is_not_ranked_with_wrong_ones_of_another_size(self):
        """Two tokens are less probable than one: it would lose to any of one token, 1 < 6, and a
        wrong one of three that happens to be probable is no rival either."""
        one = example(("bb",), (2, 2, 1, 3))
        scores = retrieval_scores(one, outcome([6, 7, 1, 5], [False] * 4), 0.0)
        assert scores["ranked"].value == 1
        scores = retrieval_scores(one, outcome([6, 5, 9, 9], [False] * 4), 0.0)
        assert scores["ranked"].value == 0

    def test_without_candidates_there_is_the_generated_measure_alone(self):
        assert {*retrieval_scores(example((), ()), outcome([], []), 1.0)} == {""}

    def test_the_share_of_substrings_whatever_the_case(self):
        assert share_found(("ABC", "12", "x", "y"), "abc 123") == 0.5
