"""Text that needles are hidden in, and the keys and values that are hidden."""

from __future__ import annotations

import re

import numpy as np
import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.haystack import (
    NOISE,
    PIECE,
    Haystack,
    joined,
    noise,
    noise_lines,
    python_documentation,
    sentence_border,
    too_short,
)
from giraffe_cli.evals.words import ADJECTIVES, DRAWN, NOUNS, Growing, draw_all

STORY = 'It was dark. "Who is there?" she said. Nobody.'


def rng(seed=0):
    return np.random.default_rng(seed)


class TestHaystack:
    def test_the_worked_example(self):
        assert Haystack(["It was dark. She ran."]).cut(0, 3) == ["It", "was", "dark."]

    def test_a_slice_wraps_around_at_the_end_as_often_as_it_must(self):
        haystack = Haystack(["a b.", "c d"])
        assert haystack.cut(2, 3) == ["c", "d", "a"]
        assert haystack.cut(2, 11) == "c d a b. c d a b. c d a".split()
        assert haystack.cut(2, 0) == []

    def test_longer_slices_begin_as_shorter_ones(self):
        haystack = Haystack([STORY])
        assert haystack.cut(3, 30)[:12] == haystack.cut(3, 12)

    def test_it_begins_at_sentences_quoted_ones_too(self):
        haystack = Haystack([STORY])
        starts = {" ".join(haystack.cut(haystack.start(rng(s)), 2)) for s in range(40)}
        assert starts == {"It was", '"Who is', "she said.", "Nobody. It"}

    @pytest.mark.parametrize("texts", [[], ["", "  \n"]])
    def test_without_a_word_it_is_refused(self, texts):
        with pytest.raises(InvalidInput, match="the haystack holds no words"):
            Haystack(texts)


STORIES = {
    "Chinese": "很久以前，山里住着一位老人。他每天早上都去河边打水！有一天他看见了一只长颈鹿。" * 9,
    "Thai": "กาลครั้งหนึ่งนานมาแล้วมียีราฟตัวหนึ่งอาศัยอยู่ในทุ่งหญ้า" * 9,
    "minified": "a=b=>b.map(c=>c+1);d=[a,a];" * 9,
}


class TestTextWithoutBlanks:
    @pytest.mark.parametrize("text", STORIES.values(), ids=STORIES)
    def test_it_is_cut_into_small_pieces_and_joined_without_a_trace(self, text):
        words = Haystack([text]).words
        assert max(map(len, words)) <= PIECE + 1 + 1  # what glues it, and a quote behind an end
        assert joined(words) == text
        assert joined([*words[:3], "A needle.", *words[3:]]) == (
            f"{joined(words[:3])} A needle.{joined(words[3:])}"
        )

    def test_it_begins_at_sentences(self):
        haystack = Haystack([STORIES["Chinese"]])
        starts = {joined(haystack.cut(haystack.start(rng(s)), 2))[:3] for s in range(40)}
        assert starts == {"很久以", "他每天", "有一天"}

    def test_a_needle_stands_behind_a_sentence(self):
        words = Haystack([STORIES["Chinese"]]).words
        for depth in (0.2, 0.5, 0.8):
            assert words[sentence_border(words, depth) - 1][-1] in "。！"

    def test_words_with_blanks_stay_as_they_are(self):
        text = f"See https://example.org/{'a' * 30} there. 'Honorificabilitudinitatibus,' he said."
        assert Haystack([text]).words == text.split()
        assert joined(Haystack([text]).words) == text


class TestBorders:
    @pytest.mark.parametrize(
        ("depth", "before"),
        [(0.0, 0), (0.2, 0), (0.4, 3), (0.5, 3), (0.7, 6), (0.99, 9), (1.0, 9)],
    )
    def test_a_needle_stands_after_the_sentence_before_its_depth(self, depth, before):
        words = STORY.split()  # sentences end before the places 3, 6 (in quotes), 8 and 9
        assert sentence_border(words, depth) == before

    def test_text_without_a_sentence_takes_it_first_or_last(self):
        assert [sentence_border(["a"] * 9, depth) for depth in (0, 0.5, 1)] == [0, 0, 9]

    def test_a_transcript_has_its_depths_and_not_the_beginning_alone(self):
        """Every depth but the last stood at 0, and equal prompts counted as samples."""
        words = ["word"] * 700
        depths = [sentence_border(words, depth) for depth in np.linspace(0, 1, 11)]
        assert depths == [0, *range(70, 700, 70), 700]

    @pytest.mark.parametrize("end", ["。", "।", "؟", "!»", "…"])
    def test_sentences_end_otherwise_elsewhere(self, end):
        words = [*["a"] * 50, f"b{end}", *["c"] * 49]
        assert sentence_border(words, 0.55) == 51


class TestNoise:
    def test_sentences_follow_each_other_in_a_circle(self):
        assert noise(4, 6) == f"{NOISE[4]} {NOISE[0]}"
        assert noise(3, 3) == ""

    def test_lines_hold_five_sentences_and_the_last_the_rest(self):
        assert noise_lines(7) == [" ".join(NOISE), " ".join(NOISE[:2])]
        assert noise_lines(5) == [" ".join(NOISE)]
        assert noise_lines(0) == []


@pytest.fixture(scope="module")
def texts():
    return python_documentation()


class TestPythonDocumentation:
    def test_fills_a_128k_window_without_repeating_itself(self, texts):
        assert sum(len(text.split()) for text in texts) > 130_000

    def test_holds_docstrings_and_help_topics_the_same_every_time(self, texts):
        assert any("compound statements" in text for text in texts)
        assert any("heap" in text and "priority queue" in text for text in texts)
        assert texts == python_documentation()


class TestWords:
    def test_no_word_stands_twice(self):
        for words in (ADJECTIVES, NOUNS):
            assert len({*words}) == len(words)
            assert all(re.fullmatch("[a-z]+", word) for word in words)

    @pytest.mark.parametrize(
        ("kind", "form"),
        [
            ("word", "[a-z]+-[a-z]+"),
            ("five-digits", r"[1-9]\d{4}"),
            ("number", r"[1-9]\d{6}"),
            ("uuid", "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
        ],
    )
    def test_a_kind_has_its_form_and_differs_in_each_draw(self, kind, form):
        drawn = Growing(draw_all(kind, rng()), "drawn").first(3000)
        assert len({*drawn}) == 3000
        assert all(re.fullmatch(form, value) for value in drawn)
        assert re.fullmatch(form, DRAWN[kind](rng()))
        assert drawn != Growing(draw_all(kind, rng(1)), "drawn").first(3000)

    def test_there_are_keys_for_every_line_of_a_million_tokens(self):
        keys = Growing(draw_all("word", rng()), "keys").first(43_000)
        assert len({*keys}) == 43_000


class TestGrowing:
    def test_gives_the_same_first_items_however_it_is_asked(self):
        growing, whole = (Growing(draw_all("number", rng()), "numbers") for _ in range(2))
        assert (growing.first(3), growing.first(1), growing.first(7)) == (
            whole.first(7)[:3],
            whole.first(7)[:1],
            whole.first(7),
        )

    def test_a_stream_that_ends_is_refused_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="keys: 4 different ones are needed, there are 3"):
            Growing(iter("abc"), "keys").first(4)


class TestTooShort:
    def test_of_three_words_a_token_each(self):
        told = too_short(["It was", "dark."], str.split, 12)
        assert "holds 3 tokens, and a prompt of 12 repeats it 4.0 times" in told

    def test_long_enough_or_none(self):
        assert too_short(["It was dark."], str.split, 3) == ""
        assert too_short([], str.split, 12) == ""

    def test_long_text_is_not_tokenised_for_it(self):
        assert too_short(["a " * 500], None, 48) == ""
