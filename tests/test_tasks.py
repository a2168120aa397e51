"""One contract for every registered task, with stub models; then what each task promises itself."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Material, Outcome, TokenDocument, make_task, tasks
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.evals.tasks.passkey import FILLER, QUESTION, TASK, Passkey

BOS = 256
LENGTHS = [1024, 2048]


def material(documents=4, tokens=3000, bos=(BOS,)):
    """Bytes as tokens, and documents of distinct numbers, so that a slice tells its place."""
    return Material(
        encode=lambda text: list(text.encode()),
        decode=lambda ids: bytes(ids).decode(),
        bos_token_ids=bos,
        documents=[
            TokenDocument(f"doc-{d}", np.arange(tokens, dtype=np.int32) + 10_000 * d)
            for d in range(documents)
        ],
    )


def oracle(example):
    """Knows every target and every answer."""
    return Outcome(np.zeros(example.num_targets), f" {example.answer.split(' ')[0]}.")


def constant(example):
    """Says the same whatever it is asked."""
    return Outcome(np.full(example.num_targets, 5.0), " 1")


@pytest.fixture(params=sorted(tasks()))
def task(request):
    known = {field.name for field in dataclasses.fields(tasks()[request.param])}
    return make_task(request.param, {"longest": LENGTHS[-1]} if "longest" in known else {})


class TestContract:
    def test_describes_itself(self, task):
        assert task.summary
        assert task.source

    @pytest.mark.parametrize("length", LENGTHS)
    @pytest.mark.parametrize("bos", [(), (BOS,)])
    def test_fills_the_length_and_never_exceeds_it(self, task, length, bos):
        for example in task.examples(length, 0, material(bos=bos)):
            used = len(example.token_ids) + example.max_new_tokens
            assert 0.97 * length <= used <= length
            assert example.length == length
            assert example.token_ids.dtype == np.int32
            assert tuple(example.token_ids[: len(bos)]) == bos
            assert 0 <= example.num_targets < len(example.token_ids)

    def test_is_a_function_of_its_arguments(self, task):
        first, second = (task.examples(1024, 7, material()) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            assert (a.key, a.cluster, a.answer, a.details) == (
                b.key,
                b.cluster,
                b.answer,
                b.details,
            )
            assert np.array_equal(a.token_ids, b.token_ids)

    def test_keys_name_the_same_samples_at_every_length(self, task):
        short, long = ([e.key for e in task.examples(n, 0, material())] for n in LENGTHS)
        assert len({*short}) == len(short)
        assert short == long

    def test_an_oracle_scores_best_and_a_constant_does_not(self, task):
        examples = task.examples(1024, 0, material())
        best = 1.0 if task.higher_is_better else 0.0
        assert {task.score(e, oracle(e)) for e in examples} == {best}
        assert best not in {task.score(e, constant(e)) for e in examples}

    def test_proportions_score_zero_or_one(self, task):
        if task.proportion:
            scores = {task.score(e, f(e)) for e in task.examples(1024, 0, material())
                      for f in (oracle, constant)}  # fmt: skip
            assert scores == {0.0, 1.0}

    def test_a_length_it_cannot_fill_is_refused_with_the_numbers(self, task):
        with pytest.raises(InvalidInput, match=r"task `\w+`: .*\b16\b"):
            dataclasses.replace(task, **dict.fromkeys({"longest"} & {*vars(task)}, 0)).examples(
                16, 0, material()
            )

    def test_a_knob_below_one_is_refused_by_name(self, task):
        for field in dataclasses.fields(task):
            with pytest.raises(InvalidInput, match=f"{field.name} is -1"):
                dataclasses.replace(task, **{field.name: -1})


class TestNaming:
    def test_an_unknown_task_names_its_neighbours(self):
        with pytest.raises(InvalidInput, match="unknown evaluation task `paskey`") as caught:
            make_task("paskey", {})
        assert "did you mean `passkey`?" in caught.value.hint

    def test_an_unknown_knob_names_its_neighbours(self):
        with pytest.raises(InvalidInput, match="`anchor` is no knob of `nll`") as caught:
            make_task("nll", {"anchor": 2})
        assert "did you mean `anchors`?" in caught.value.hint


class TestNll:
    def test_the_worked_example(self):
        task = Nll(targets=2, longest=6, anchors=1)
        two = {
            length: task.examples(length, 0, material(1, 8, ()))[0].token_ids.tolist()
            for length in (4, 6)
        }
        assert two == {4: [2, 3, 4, 5], 6: [0, 1, 2, 3, 4, 5]}

    def test_bos_takes_the_place_of_the_first_context_token(self):
        task = Nll(targets=2, longest=6, anchors=1)
        (example,) = task.examples(6, 0, material(1, 8))
        assert example.token_ids.tolist() == [BOS, 1, 2, 3, 4, 5]

    def test_targets_are_the_same_and_contexts_nested_at_every_length(self):
        task = Nll(longest=2048)
        short, long = (task.examples(n, 0, material()) for n in LENGTHS)
        for a, b in zip(short, long, strict=True):
            assert a.num_targets == b.num_targets == 256
            assert np.array_equal(a.token_ids[1:], b.token_ids[-1023:])

    def test_anchors_span_the_document_from_the_longest_length(self):
        examples = Nll(longest=2000, anchors=3).examples(1024, 0, material(1, 3000))
        assert [e.details["anchor"] for e in examples] == [2000, 2500, 3000]
        assert {e.cluster for e in examples} == {"doc-0"}

    def test_blocks_of_targets_never_overlap(self):
        examples = Nll(longest=2000, anchors=9, targets=400).examples(1024, 0, material(1, 3000))
        assert [e.details["anchor"] for e in examples] == [2000, 2500, 3000]

    def test_a_document_shorter_than_the_longest_length_is_not_used(self):
        mixed = material(2, 3000)
        short = TokenDocument("short", np.arange(2047, dtype=np.int32))
        mixed = dataclasses.replace(mixed, documents=[*mixed.documents, short])
        clusters = {e.cluster for e in Nll(longest=2048).examples(1024, 0, mixed)}
        assert clusters == {"doc-0", "doc-1"}

    def test_no_document_long_enough_is_an_error_with_the_numbers(self):
        with pytest.raises(InvalidInput, match="none of 2 documents has 4096 .* has 3000"):
            Nll(longest=4096).examples(1024, 0, material(2, 3000))

    def test_no_room_for_context_is_an_error(self):
        with pytest.raises(InvalidInput, match="length 257 leaves no context before 256 targets"):
            Nll().examples(257, 0, material())

    def test_the_score_is_the_mean_over_targets(self):
        task = Nll(targets=2)
        example = task.examples(1024, 0, material())[0]
        assert task.score(example, Outcome(np.array([1.0, 4.0]), "")) == 2.5


class TestPasskey:
    @pytest.fixture
    def examples(self):
        return Passkey(depths=5, trials=2).examples(2048, 3, material(0, bos=()))

    def text(self, example):
        return bytes(example.token_ids.tolist()).decode()

    def test_depths_are_spread_evenly_and_the_key_lies_there(self, examples):
        keyed = [e for e in examples if not e.details["control"]]
        assert [e.details["depth"] for e in keyed[::2]] == [0.0, 0.25, 0.5, 0.75, 1.0]
        for example in keyed:
            text = self.text(example)
            before, after = text.split(f"The pass key is {example.answer}. Remember it. ")
            filler = before.count("green"), text.count("green")
            assert filler[0] / filler[1] == pytest.approx(example.details["depth"], abs=0.05)
            assert after.startswith(f"{example.answer} is the pass key.")

    def test_filler_is_whole_sentences(self, examples):
        for example in examples:
            text = self.text(example).removeprefix(TASK).removesuffix(QUESTION)
            text = re.sub(r"The pass key is (\d+)\. Remember it\. \1 is the pass key\.", "", text)
            sentences = re.findall(r"[^.]+\.", text)
            assert {sentence.strip() for sentence in sentences} == {*FILLER}
            assert "".join(sentences).strip() == text.strip()

    def test_keys_have_five_digits_and_follow_the_seed(self, examples):
        keys = [e.answer for e in examples[:-1]]
        assert all(re.fullmatch(r"[1-9]\d{4}", key) for key in keys)
        assert len({*keys}) == len(keys)
        other = Passkey(depths=5, trials=2).examples(2048, 4, material(0, bos=()))
        assert not {*keys} & {e.answer for e in other[:-1]}

    def test_more_trials_keep_the_first_ones(self):
        one, two = (Passkey(depths=2, trials=t).examples(1024, 0, material(0)) for t in (1, 2))
        assert [e.answer for e in one[:-1]] == [e.answer for e in two[:-1:2]]

    def test_the_control_holds_no_key_and_fails_when_it_names_one(self, examples):
        control = examples[-1]
        assert [e.details["control"] for e in examples] == [False] * 10 + [True]
        assert not re.search(r"\d", self.text(control))
        leaked = Outcome(np.zeros(0), f" {examples[4].answer}")
        assert Passkey().score(control, leaked) == 1.0
        assert Passkey().score(control, Outcome(np.zeros(0), " 12345")) == 0.0

    @pytest.mark.parametrize(
        ("said", "score"),
        [
            (" {key}", 1.0),
            (": {key}. Remember", 1.0),
            (" 7 or {key}", 0.0),
            (" {key}1", 0.0),
            (" I cannot tell", 0.0),
            ("", 0.0),
        ],
    )
    def test_the_first_integer_counts(self, examples, said, score):
        text = said.format(key=examples[0].answer)
        assert Passkey().score(examples[0], Outcome(np.zeros(0), text)) == score

    def test_sentences_too_long_for_the_length_are_refused(self):
        coarse = Material(
            encode=lambda text: [1] * (100 * text.count(".")),
            decode=str,
            bos_token_ids=(),
            documents=[],
        )
        with pytest.raises(InvalidInput, match=r"fill 912 of 1000 tokens, 97% to 100%"):
            Passkey().examples(1000, 0, coarse)
