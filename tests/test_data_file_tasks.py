"""Tasks whose rows come from a data file: lambada, hellaswag."""

from __future__ import annotations

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from test_text_tasks import BOS, material

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Outcome
from giraffe_cli.evals.tasks.hellaswag import Hellaswag
from giraffe_cli.evals.tasks.lambada import Lambada


def lines(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def with_file(name, path, **changes):
    """A native window of 32 of two lengths, so that rows are asked once."""
    given = material(lengths=(16, 32, 64), native_length=32, files={name: path})
    return dataclasses.replace(given, **changes)


class TestLambada:
    @pytest.fixture
    def path(self, tmp_path):
        return lines(tmp_path / "l.jsonl.gz", [{"text": f"say it {n} end{n}"} for n in range(9)])

    def test_a_prompt_is_all_but_the_last_word(self, path):
        given = with_file("lambada", path, bos_token_ids=(BOS,))
        examples = Lambada(samples=9).examples(32, 0, given)
        assert len(examples) == 9
        example = next(e for e in examples if e.key == "row 4")
        assert example.token_ids.tolist() == [BOS, *b"say it 4"]
        assert bytes(example.candidates[0]) == b" end4"
        assert example.num_targets == example.max_new_tokens == 0

    def test_is_asked_once_at_the_longest_length_within_the_native_window(self, path):
        given = with_file("lambada", path)
        asked = {n: len(Lambada().examples(n, 0, given)) for n in (16, 32, 64)}
        assert asked == {16: 0, 32: 9, 64: 0}

    def test_fewer_samples_are_the_first_of_more_and_follow_the_seed(self, path):
        given = with_file("lambada", path)
        few, many, other = (
            [e.key for e in Lambada(samples=n).examples(32, seed, given)]
            for n, seed in ((3, 0), (9, 0), (9, 1))
        )
        assert many[:3] == few
        assert many != sorted(many)
        assert sorted(many) == sorted(other)
        assert many != other

    def test_a_row_that_stands_there_again_is_no_other_sample(self, tmp_path):
        """400 times one passage had an interval of no width, and passed gates."""
        path = lines(tmp_path / "l.jsonl", [{"text": f"say the word{n % 2}"} for n in range(8)])
        examples = Lambada().examples(32, 0, with_file("lambada", path))
        assert len({example.key for example in examples}) == 8
        assert len({example.cluster for example in examples}) == 2

    def test_space_at_the_end_is_no_word(self, tmp_path):
        path = lines(tmp_path / "l.jsonl", [{"text": "say the word \n"}])
        (example,) = Lambada().examples(32, 0, with_file("lambada", path))
        assert bytes(example.token_ids.tolist()) == b"say the"
        assert (example.answers, bytes(example.candidates[0])) == (("word",), b" word")

    def test_the_word_counts_when_it_is_greedy(self, path):
        (example,) = Lambada(samples=1).examples(32, 0, with_file("lambada", path))
        for greedy in (True, False):
            found = Outcome(np.zeros(0), "", (2.5,), (greedy,))
            expected = {"": (float(greedy), 1), "nll": (2.5, 1)}
            assert Lambada().scores(example, found, {}) == expected

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"text": "oneword"}], "row 0 has no last word"),
            ([{"text": "oneword "}], "row 0 has no last word"),
            ([{"text": "x" * 40 + " y"}], "row 0 takes 42 tokens, the length is 32"),
            ([{"txt": "a b"}], "line 1 of .* has no `text`"),
            ([{"text": 3}], "line 1 of .* has int as `text`, needs str"),
            (["a b"], "line 1 of .* is no JSON object with `text`"),
            ([{"text": "a b"}, {"text": 3}], "line 2 of"),
            ([], "is empty"),
        ],
    )
    def test_rows_that_cannot_be_asked_are_named(self, tmp_path, rows, message):
        path = lines(tmp_path / "bad.jsonl", rows)
        with pytest.raises(InvalidInput, match=f"task `lambada`: .*{message}"):
            Lambada().examples(32, 0, with_file("lambada", path))

    def test_a_file_that_is_cut_short_or_none_is_named(self, tmp_path, path):
        cut = tmp_path / "cut.gz"
        cut.write_bytes((tmp_path / "l.jsonl.gz").read_bytes()[:40])
        for bad in (cut, tmp_path / "absent"):
            with pytest.raises(InvalidInput, match=f"{bad} cannot be read"):
                Lambada().examples(32, 0, with_file("lambada", str(bad)))
        with pytest.raises(InvalidInput, match="needs a data file, JSON lines with `text`"):
            Lambada().examples(8, 0, material())


class TestHellaswag:
    @pytest.fixture
    def path(self, tmp_path):
        endings = ["a", "bb", "ccc", "dddd"]
        rows = [{"ind": 7, "ctx": "it", "label": n, "endings": endings} for n in range(4)]
        return lines(tmp_path / "h.jsonl", rows)

    def test_the_true_ending_stands_first(self, path):
        examples = Hellaswag().examples(32, 0, with_file("hellaswag", path))
        example = next(e for e in examples if e.key == "row 2")
        assert [bytes(c) for c in example.candidates] == [b" ccc", b" a", b" bb", b" dddd"]
        assert example.answers == ("ccc",)
        assert example.details["characters"] == [3, 1, 2, 4]

    @pytest.mark.parametrize(
        ("nll", "score"),
        [
            ((3.0, 2.0, 4.0, 8.0), 1.0),  # 1 a character against 2, although 2 nats are fewest
            ((6.0, 1.0, 9.0, 9.0), 0.0),  # 2 against 1
            ((3.0, 1.0, 9.0, 9.0), 0.0),  # a draw is not won
        ],
    )
    def test_losses_count_by_character(self, path, nll, score):
        examples = Hellaswag().examples(32, 0, with_file("hellaswag", path))
        example = next(e for e in examples if e.key == "row 2")
        found = Outcome(np.zeros(0), "", nll, (False,) * 4)
        assert Hellaswag().scores(example, found, {}) == {"": (score, 1)}

    def test_a_row_as_published_is_rendered_as_lm_eval_renders_it(self, tmp_path):
        row = {
            "ctx": "not read",
            "activity_label": "Home",
            "ctx_a": "[header] How to paint [title] Cover it.",
            "ctx_b": "then the Man",
            "label": 1,
            "endings": [
                "dips a brush [substeps] slowly.",
                "[step]  waits.",
                " rests ",
                "x [title]",
            ],
        }
        path, wide = lines(tmp_path / "h.jsonl", [row]), {"lengths": (128,), "native_length": 128}
        (example,) = Hellaswag().examples(128, 0, with_file("hellaswag", path, **wide))
        assert bytes(example.token_ids.tolist()) == (b"Home: How to paint. Cover it. Then the man")
        assert [bytes(c) for c in example.candidates] == [
            b"  waits.", b" dips a brush slowly.", b" rests", b" x. "
        ]  # fmt: skip
        assert example.details["characters"] == [7, 20, 5, 3]

    def test_a_space_at_the_end_of_the_prompt_begins_the_endings(self, tmp_path):
        row = {"ctx": "", "activity_label": "Home", "ctx_a": "Paint [title] [step]", "label": 0,
               "endings": ["a", "b", "c", "d"]}  # fmt: skip
        path = lines(tmp_path / "h.jsonl", [row])
        (example,) = Hellaswag().examples(32, 0, with_file("hellaswag", path))
        assert bytes(example.token_ids.tolist()) == b"Home: Paint."
        assert bytes(example.candidates[0]) == b"  a"

    def test_a_label_that_is_text_is_read_as_the_number(self, tmp_path, path):
        """As the hub's rows have it."""
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        texts = lines(tmp_path / "t.jsonl", [{**row, "label": str(row["label"])} for row in rows])
        found, expected = (
            Hellaswag().examples(32, 0, with_file("hellaswag", file)) for file in (texts, path)
        )
        assert [e.candidates for e in found] == [e.candidates for e in expected]

    @pytest.mark.parametrize(
        "changes",
        [
            {"label": ""},
            {"label": 4},
            {"label": -1},
            {"label": True},
            {"endings": ["a", "b"]},
            {"endings": ["a"] * 3 + [""]},
        ],
    )
    def test_rows_of_another_form_are_named(self, tmp_path, changes):
        row = {"ctx": "it", "label": 0, "endings": ["a", "b", "c", "d"], **changes}
        path = lines(tmp_path / "bad.jsonl", [row])
        with pytest.raises(InvalidInput, match="row 0 has not 4 endings and the place of one"):
            Hellaswag().examples(32, 0, with_file("hellaswag", path))
