"""One contract for every registered task, with stubs for models; no task is named but as a witness.

A task that needs what the material has not, such as a data file, is skipped by name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from eval_stubs import (
    BOS,
    LENGTHS,
    LONG,
    NATIVE,
    WINDOW,
    ask_as_chat,
    byte_material,
    constant,
    copier,
    near_sighted,
    num_truths,
    oracle,
    real_material,
    reciter,
    score,
    visible,
    wrong,
)

import giraffe_cli
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import make_task, tasks
from giraffe_cli.evals.measures import RANKED_AGAINST, RETRIEVAL, RETRIEVAL_OF_SEVERAL

RETRIEVING = [
    n for n, kind in tasks().items() if kind.measures in (RETRIEVAL, RETRIEVAL_OF_SEVERAL)
]
FILES = {field.name for field in dataclasses.fields(byte_material())}
FEW = {"samples": 6, "depths": 5, "trials": 2}
"""Enough samples to tell chance from none, of every task that has such knobs."""


def make(name: str, **knobs):
    """The task with few samples; skipped where it needs a file."""
    lacking = [need for need in tasks()[name].needs if need not in FILES]
    if lacking:
        pytest.skip(f"{name} needs the file {', '.join(lacking)}")
    known = {field.name for field in dataclasses.fields(tasks()[name])}
    return make_task(name, {k: v for k, v in {**FEW, **knobs}.items() if k in known})


@pytest.fixture(scope="module")
def material():
    return byte_material()


@pytest.fixture(params=sorted(tasks()))
def task(request):
    return make(request.param)


@pytest.fixture(params=sorted(RETRIEVING))
def retrieval(request):
    return make(request.param)


def content(example):
    """All of it, comparable."""
    return {**dataclasses.asdict(example), "token_ids": example.token_ids.tolist()}


def keyed(examples):
    """The examples that hold what they ask for."""
    return [example for example in examples if not example.details.get("control")]


@pytest.mark.parametrize("name", sorted(tasks()))
def test_losses_are_better_low_and_shares_high(name):
    for measure in tasks()[name].measures.values():
        is_loss = measure.unit != ""
        assert measure.higher_is_better != is_loss
        assert (measure.kind == "mean") == is_loss
        assert measure.chance == 0 if is_loss else 0 <= measure.chance < 1


class TestEveryTask:
    def test_describes_itself(self, task):
        assert task.summary
        assert task.source
        assert "" in task.measures
        assert all(measure.summary for measure in task.measures.values())
        for one, other in task.contrasts.values():
            assert {one, other} <= {*task.measures}

    @pytest.mark.parametrize("changes", [{}, {"bos_token_ids": ()}, {"chat": ask_as_chat}])
    def test_fills_the_length_and_never_exceeds_it(self, task, changes):
        material, made = byte_material(**changes), 0
        for length in LENGTHS:
            examples = [e for e in task.examples(length, 0, material) if not e.for_reference]
            made += len(examples)
            for example in examples:
                longest = max(map(len, example.candidates), default=0)
                assert len(example.token_ids) + longest <= length
                used = len(example.token_ids) + max(example.max_new_tokens, longest)
                assert 0.97 * length <= used <= length
                assert example.length == length
                assert example.token_ids.dtype == np.int32
                assert 0 <= example.num_targets < len(example.token_ids)
        assert made

    def test_begins_with_what_the_tokenizer_puts_first(self, task, material):
        for example in task.examples(NATIVE, 0, material):
            assert example.token_ids[0] == BOS
            assert BOS not in example.token_ids[1:]

    def test_is_a_function_of_its_arguments(self, task, material):
        first = [content(example) for example in task.examples(NATIVE, 7, material)]
        task.examples(LONG, 7, material)
        again = make(next(name for name, kind in tasks().items() if kind is type(task)))
        assert first == [content(example) for example in again.examples(NATIVE, 7, byte_material())]

    def test_keys_are_distinct(self, task, material):
        for length in LENGTHS:
            keys = [example.key for example in task.examples(length, 0, material)]
            assert len({*keys}) == len(keys)

    def test_says_beforehand_what_each_example_bears_on(self, task, material):
        given = [e for n in LENGTHS for e in task.examples(n, 0, material)]
        for example, found in score(task, keyed(given), oracle, material):
            assert {*found} == {*task.bears_on(example)}

    def test_an_oracle_scores_best_on_every_measure_and_a_constant_on_none(self, task, material):
        examples = [e for n in LENGTHS for e in task.examples(n, 0, material)]
        best, worse = (score(task, keyed(examples), stub, material) for stub in (oracle, constant))
        for measure, about in task.measures.items():
            knowing, blank = (
                [found[measure].value for _, found in scored if measure in found]
                for scored in (best, worse)
            )
            if measure and knowing == blank:
                continue  # about the text or the reference model, not about the one under test
            assert {*knowing} == {1.0 if about.higher_is_better else 0.0}, measure
            if about.bounded:
                assert {*blank} == {0.0 if about.higher_is_better else 1.0}, measure
            else:
                assert min(blank) > 0, measure

    def test_bounded_measures_stay_within_0_and_1(self, task, material):
        for stub in (oracle, constant, reciter, copier, near_sighted):
            for _, found in score(task, task.examples(NATIVE, 0, material), stub, material):
                for measure, value in found.items():
                    assert value.weight > 0
                    if task.measures[measure].bounded:
                        assert 0 <= value.value <= 1
                    if task.measures[measure].kind == "proportion":
                        assert value.value in (0, 1)

    def test_a_length_it_cannot_fill_is_refused_with_the_number(self, task, material):
        try:
            assert task.examples(16, 0, material) == []
        except InvalidInput as refused:
            assert "16" in refused.message  # noqa: PT017
            assert refused.message.startswith("task `")  # noqa: PT017
            assert refused.hint  # noqa: PT017

    def test_a_count_below_its_least_is_refused_by_name(self, task):
        counts = [f.name for f in dataclasses.fields(task) if type(f.default) in (int, float)]
        assert counts
        for name in counts:
            with pytest.raises(InvalidInput, match=f"{name} is -1"):
                dataclasses.replace(task, **{name: -1})

    def test_only_tasks_that_need_a_file_were_skipped(self):
        skipped = {
            n for n, kind in tasks().items() if any(need not in FILES for need in kind.needs)
        }
        assert skipped <= {"lambada", "hellaswag"}


class TestRetrieval:
    def test_the_protocols_are_there(self):
        ruler = "single-1 single-2 single-3 multikey-1 multikey-2 multikey-3 multivalue multiquery"
        needles = {f"niah-{name}" for name in ruler.split()}
        assert {"passkey", "niah", "lines", "kv", "vt", *needles} <= {*RETRIEVING}

    def test_the_same_samples_are_asked_at_every_length(self, retrieval, material):
        short, long = ([e.key for e in retrieval.examples(n, 0, material)] for n in LENGTHS)
        assert short == long

    def test_other_seeds_ask_other_things(self, retrieval, material):
        one, other = (
            {answer for e in retrieval.examples(NATIVE, seed, material) for answer in e.answers}
            for seed in (0, 1)
        )
        assert not one & other

    def test_more_samples_keep_the_first_ones(self, retrieval, material):
        knob = "trials" if "trials" in vars(retrieval) else "samples"
        few = dataclasses.replace(retrieval, **{knob: 1}).examples(NATIVE, 0, material)
        many = {e.key: e for e in retrieval.examples(NATIVE, 0, material)}
        for example in keyed(few):
            assert example.answers == many[example.key].answers
            assert example.token_ids.tolist() == many[example.key].token_ids.tolist()

    def test_every_answer_stands_in_its_prompt_and_none_in_a_control(self, retrieval, material):
        for example in retrieval.examples(NATIVE, 0, material):
            text = visible(example, material)
            held = [answer in text for answer in example.answers]
            assert held
            assert not any(held) if example.details.get("control") else all(held)

    def test_nine_wrong_answers_of_every_token_count(self, retrieval, material):
        for example in keyed(retrieval.examples(NATIVE, 0, material)):
            truths = example.candidates[: num_truths(example)]
            counts = Counter(len(candidate) for candidate in wrong(example))
            assert counts == {len(truth): RANKED_AGAINST for truth in truths}
            assert len({*truths, *wrong(example)}) == len(truths) + len(wrong(example))

    def test_wrong_answers_that_stand_in_the_context_come_first(self, retrieval, material):
        for example in keyed(retrieval.examples(LONG, 0, material)):
            text = visible(example, material)
            standing = [material.decode(c).strip() in text for c in wrong(example)]
            assert standing == sorted(standing, reverse=True)

    def test_reciting_the_prompt_is_no_full_marks(self, retrieval, material):
        for _, found in score(
            retrieval, keyed(retrieval.examples(NATIVE, 0, material)), reciter, material
        ):
            assert found["ranked"].value == found["exact"].value == 0

    def test_values_that_stand_in_the_context_are_told_apart(self, retrieval, material):
        """Where other values stand in the context, finding all of them alike wins nothing."""
        for example, found in score(
            retrieval, keyed(retrieval.examples(NATIVE, 0, material)), copier, material
        ):
            text = visible(example, material)
            if any(material.decode(c).strip() in text for c in wrong(example)):
                assert found["ranked"].value == 0
            assert found["exact"].value == 0

    def test_seeing_only_the_last_tokens_finds_nothing_beyond_them(self, retrieval, material):
        many = {"samples": 30, "depths": 6, "trials": 5}
        known = {k: v for k, v in many.items() if k in vars(retrieval)}
        examples = keyed(dataclasses.replace(retrieval, **known).examples(LONG, 0, material))
        outside, inside = [], []
        for example, found in score(retrieval, examples, near_sighted, material):
            window = visible(example, material, WINDOW)
            seen = sum(answer in window for answer in example.answers)
            if seen == 0:
                outside.append(found)
            if seen == len(example.answers):
                inside.append(found)
        assert len(outside) >= 15
        assert {found[""].value for found in outside} == {0.0}
        assert {found["exact"].value for found in outside} == {0.0}
        above = 3 * np.sqrt(0.1 * 0.9 / len(outside))
        assert np.mean([found["ranked"].value for found in outside]) < 0.1 + above
        assert all(found["exact"].value == 1 for found in inside)

    def test_a_chat_template_stands_around_the_question_and_before_the_prefix(self, retrieval):
        bare, chat = byte_material(), byte_material(chat=ask_as_chat)
        for one, other in zip(
            retrieval.examples(NATIVE, 0, bare), retrieval.examples(NATIVE, 0, chat), strict=True
        ):
            assert one.answers == other.answers
            truths = num_truths(one)
            assert one.candidates[:truths] == other.candidates[:truths]
            ids = other.token_ids.tolist()
            assert (ids[0], ids.count(257), ids.count(258)) == (257, 1, 1)
            prefix = visible(other, chat).rpartition("assistant")[2]
            assert prefix
            assert visible(one, bare).endswith(prefix)


@pytest.fixture(scope="module")
def calf():
    return real_material(Path(giraffe_cli.__file__).parent / "calf")


class TestWithARealTokenizer:
    @pytest.mark.parametrize("length", [1024, 1536, 2048])
    def test_fills_the_length_from_the_native_window_of_calf_on(self, retrieval, calf, length):
        for example in retrieval.examples(length, 0, calf):
            reserved = max([example.max_new_tokens, *map(len, example.candidates)])
            assert 0.97 * length <= len(example.token_ids) + reserved <= length

    def test_candidates_spell_the_answers_and_have_nine_wrong_ones(self, retrieval, calf):
        for example in keyed(retrieval.examples(1024, 0, calf)):
            truths = example.candidates[: num_truths(example)]
            assert tuple(calf.decode(c).strip() for c in truths) == example.answers
            counts = Counter(len(candidate) for candidate in wrong(example))
            assert counts == dict.fromkeys(map(len, truths), RANKED_AGAINST)
            said = calf.decode([*example.token_ids[-40:].tolist(), *truths[0]])
            assert said.endswith(example.answers[0])


class TestNaming:
    def test_an_unknown_task_names_its_neighbours(self):
        with pytest.raises(InvalidInput, match="unknown evaluation task `paskey`") as caught:
            make_task("paskey", {})
        assert "did you mean `passkey`?" in caught.value.hint

    def test_an_unknown_knob_names_its_neighbours(self):
        with pytest.raises(InvalidInput, match="`anchor` is no knob of `nll`") as caught:
            make_task("nll", {"anchor": 2})
        assert "did you mean `anchors`?" in caught.value.hint


class TestKnobs:
    """Every knob of every task, by the kind of its default."""

    @pytest.mark.parametrize("name", sorted(tasks()))
    def test_what_is_no_such_value_is_refused_and_all_at_once(self, name):
        wrong = {}
        for knob in dataclasses.fields(tasks()[name]):
            wrong[knob.name] = "maybe" if isinstance(knob.default, bool) else -1
        with pytest.raises(InvalidInput) as refused:
            make_task(name, wrong)
        for knob in wrong:
            assert f"{knob} is {wrong[knob]}, must be " in refused.value.message
        assert f"task `{name}`" in refused.value.message

    @pytest.mark.parametrize("value", [True, 0, 2.5, "many"])
    def test_a_count_is_an_integer_of_one_or_more(self, value):
        with pytest.raises(InvalidInput, match=f"task `niah`: depths is {value}, must be 1 to 101"):
            make_task("niah", {"depths": value})

    def test_a_count_that_may_be_nought_says_so(self):
        assert make_task("longppl", {"near": 0}).near == 0
        with pytest.raises(InvalidInput, match="near is -1, must be 0 or more"):
            make_task("longppl", {"near": -1})
