"""Documents that hold an evaluation's text are found, and others are not."""

from __future__ import annotations

import gzip
import json
import string

import pytest
from conftest import prose
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.contamination import CONTAMINATED_FROM, WORDS, EvaluationGrams
from giraffe_cli.errors import InvalidInput

QUESTION = " ".join(string.ascii_lowercase)  # 26 words: 14 runs of 13


@pytest.fixture
def grams(tmp_path):
    path = tmp_path / "bench.jsonl"
    path.write_text(json.dumps({"question": QUESTION, "choices": ["yes", "no"]}) + "\n\n")
    return EvaluationGrams.of([str(path)])


def test_runs_of_13_words_are_counted(grams):
    letters = QUESTION.split()
    assert grams.hits("before " + QUESTION + " after") == 14
    assert grams.hits(" ".join(letters[:12])) == 0
    assert grams.hits(" ".join(letters[:13])) == 1
    assert grams.hits(" ".join(letters[:12] + ["x"])) == 0
    assert grams.hits(" ".join(reversed(letters))) == 0
    assert grams.hits("") == 0


def test_fifteen_words_in_a_row_contaminate(grams):
    letters = QUESTION.split()
    assert CONTAMINATED_FROM == 3
    assert not grams.contaminates(" ".join(letters[:14]))
    assert grams.contaminates(" ".join(letters[5:20]))


def test_case_punctuation_and_line_breaks_hide_nothing(grams):
    assert grams.hits(",\n".join(QUESTION.upper().split())) == 14


@pytest.mark.parametrize("name", ["deep.json", "deep.jsonl"])
def test_what_is_nested_too_deeply_is_named_and_what_python_can_read_is_read(tmp_path, name):
    (tmp_path / name).write_text("[" * 200_000)
    with pytest.raises(InvalidInput, match=f"{name}:1: nested too deeply"):
        EvaluationGrams.of([str(tmp_path / name)])
    (tmp_path / name).write_text("[" * 900 + json.dumps(QUESTION) + "]" * 900)
    assert EvaluationGrams.of([str(tmp_path / name)]).hits(QUESTION) == 14


def test_the_report_says_what_was_compared(grams, tmp_path):
    assert grams.report() == {
        "files": [str(tmp_path / "bench.jsonl")],
        "texts": 1,
        "texts_too_short": 2,
        "words": 13,
        "hits": 3,
    }


TEXT = "Eleven lanterns, drifted\npast the broken caf\u00e9 before dawn and nobody on either bank"
"""14 words: 2 runs of 13."""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", json.dumps({"data": [{"q": TEXT}]}, indent=1)),
        ("lines.json", json.dumps({"q": TEXT}) + "\n" + json.dumps({"q": "x"})),
        ("a.ndjson", json.dumps({"q": TEXT})),
        ("a.JSONL", "\ufeff" + json.dumps({"q": TEXT})),
        ("a.md", TEXT.replace("\u00e9", "e\u0301")),
    ],
)
def test_however_a_text_is_written_down_it_is_found(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    grams = EvaluationGrams.of([str(tmp_path / name)])
    assert grams.hits(TEXT) == grams.hits(TEXT.replace("\u00e9", "e\u0301")) == 2


def test_a_character_is_a_word_where_no_blanks_stand_between(tmp_path):
    (tmp_path / "a.txt").write_text("人工智能正在改变我们的世界和生活方式", encoding="utf-8")
    grams = EvaluationGrams.of([str(tmp_path / "a.txt")])
    assert grams.hits("他说：人工智能，正在改变我们的世界和生活方式！") == 18 - 12
    assert grams.hits("人工智能") == 0


def test_gzipped_json_and_plain_text_are_read_too(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps([QUESTION]).encode()))
    (tmp_path / "b.txt").write_text(prose(1, 9))
    grams = EvaluationGrams.of([str(tmp_path / "a.jsonl.gz"), str(tmp_path / "b.txt")])
    assert grams.hits(QUESTION) == 14
    assert grams.contaminates(prose(1, 9))
    assert not grams.contaminates(prose(2, 9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"{", "bench.jsonl:1: not valid JSON"),
        (b"\xff\n", "cannot be read"),
        (b'{"q": "too short"}', "no text of 13 words"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, content, message):
    path = tmp_path / "bench.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        EvaluationGrams.of([str(path)])


@given(st.lists(st.sampled_from("ab"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40))
def test_hits_agree_with_sets_of_tuples(tmp_path_factory, evaluation, document):
    def runs(words):
        return [tuple(words[k : k + WORDS]) for k in range(len(words) - WORDS + 1)]

    if len(evaluation) < WORDS:
        return
    path = tmp_path_factory.mktemp("bench") / "bench.txt"
    path.write_text(" ".join(evaluation))
    known = set(runs(evaluation))
    expected = sum(run in known for run in runs(document))
    assert EvaluationGrams.of([str(path)]).hits(" ".join(document)) == expected


PASSAGE = (
    "the old ferryman counted eleven lanterns drifting past the broken mill before dawn "
    "came softly over the quiet water again"
)
STOCK = "in the beginning of the year the people of the village came together and"  # 14 words


@pytest.mark.parametrize("before", [0, 1, 40])
@pytest.mark.parametrize("after", [0, 1, 40])
def test_a_passage_of_20_words_is_found_wherever_it_is_planted(tmp_path, before, after):
    assert len(PASSAGE.split()) == 20
    assert len(STOCK.split()) == 14
    (tmp_path / "bench.jsonl").write_text(json.dumps({"q": f"{prose(900, 3)} {PASSAGE}"}) + "\n")
    grams = EvaluationGrams.of([str(tmp_path / "bench.jsonl")])
    text = f"{prose(1, before)} {PASSAGE.upper()} {prose(2, after)}"
    assert grams.hits(text) == 8
    assert grams.contaminates(text)
    assert not grams.contaminates(f"{prose(1, before)} {prose(2, after)}")


def test_a_stock_phrase_removes_no_document(tmp_path):
    (tmp_path / "bench.txt").write_text(f"{STOCK} {PASSAGE}")
    grams = EvaluationGrams.of([str(tmp_path / "bench.txt")])
    assert grams.hits(f"{prose(1, 9)} {STOCK} {prose(2, 9)}") == 2
    assert not grams.contaminates(f"{prose(1, 9)} {STOCK} {prose(2, 9)}")
