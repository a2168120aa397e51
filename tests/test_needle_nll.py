"""The needle-driven loss: which tokens count, where needles lie, in what order they are asked."""

from __future__ import annotations

import re

import numpy as np
import pytest
from eval_stubs import byte_material, decode

from giraffe_cli.evals.base import Outcome, make_task

HIDDEN = re.compile(r"One of the special magic numbers for (\S+) is: (\d{7})\.")
ASKED = re.compile(r"\nThe special magic number for (\S+) is: (\d{7})")


@pytest.fixture
def examples():
    return make_task("needle-nll", {"samples": 3, "needles": 4}).examples(2048, 0, byte_material())


def answers(example) -> list[str]:
    """What stands at the places that count."""
    targets = example.token_ids[len(example.token_ids) - example.num_targets :].tolist()
    return [decode(targets[start:stop]) for start, stop in example.details["answers"]]


def test_the_numbers_alone_count_and_all_of_them(examples):
    for example in examples:
        text = decode(example.token_ids.tolist())
        asked = ASKED.findall(text)
        assert answers(example) == [f" {value}" for _, value in asked]
        assert sorted(asked) == sorted(HIDDEN.findall(text))
        assert len(asked) == 4


def test_the_first_target_is_the_first_token_of_an_answer(examples):
    for example in examples:
        assert example.details["answers"][0][0] == 0
        assert example.details["answers"][-1][1] == example.num_targets


def test_needles_lie_from_the_first_word_to_the_last_and_are_asked_in_another_order(examples):
    orders = []
    for example in examples:
        text = decode(example.token_ids.tolist())
        places = [match.start() / len(text) for match in HIDDEN.finditer(text)]
        assert places[0] < 0.1
        assert 0.25 < places[1] < 0.45
        hidden = [key for key, _ in HIDDEN.findall(text)]
        orders.append([hidden.index(key) for key, _ in ASKED.findall(text)])
    assert any(order != sorted(order) for order in orders)


def test_every_answer_token_weighs_the_same(examples):
    example = examples[0]
    nll = np.full(example.num_targets, 9.0)
    (first, last), *others = example.details["answers"]
    nll[first:last] = 4.0
    for start, stop in others:
        nll[start:stop] = 1.0
    task = make_task("needle-nll", {"samples": 3, "needles": 4})
    (value,) = task.scores(example, Outcome(nll, ""), {}).values()
    sizes = [stop - start for start, stop in example.details["answers"]]
    assert value.value == pytest.approx((4.0 * sizes[0] + sum(sizes[1:])) / sum(sizes))
    assert value.weight == sum(sizes)
