"""Predicted seconds: the arithmetic by hand, and what timing a model leaves behind."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from evaluated import opened

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.order import Prompt, Step
from giraffe_cli.evals.pace import REPEATS, Pace, measured_pace

PACE = Pace(forward=1.0, token=0.1, pair=0.01, step_pair=0.001, loss=0.5)


def prompt(size, targets=0, new=0, candidates=()):
    ids = np.zeros(size, np.int32)
    return Prompt((("t", Example("k", "c", 99, ids, targets, new, candidates=candidates)),))


def test_reading_counts_passes_tokens_and_pairs():
    # 20 tokens in chunks of 8: three passes; 20² / 2 pairs
    assert PACE.seconds([Step((prompt(20),))], 8) == pytest.approx(3 + 2 + 2)
    # 16 are there: one pass of 4 tokens, which see (20² - 16²) / 2
    assert PACE.seconds([Step((prompt(20),), 16)], 8) == pytest.approx(1 + 0.4 + 0.72)
    # a row is one pass
    assert PACE.seconds([Step((prompt(8), prompt(4)))], 8) == pytest.approx(1 + 1.2 + 0.4)


def test_answers_count_their_passes_and_losses():
    plain = PACE.seconds([Step((prompt(10),))], 16)
    targets = PACE.seconds([Step((prompt(10, targets=4),))], 16)
    assert targets - plain == pytest.approx(4 * 0.5)
    generated = PACE.seconds([Step((prompt(10, new=3),))], 16)
    assert generated - plain == pytest.approx(2 * (1 + 0.1 + 10 * 0.001) + 3 * 0.5)
    stopping = dataclasses.replace(prompt(10, new=3).entries[0][1], stops_when_found=True)
    halved = PACE.seconds([Step((Prompt((("t", stopping),)),))], 16)
    assert generated - halved == pytest.approx(1 + 0.1 + 10 * 0.001)
    ranked = PACE.seconds([Step((prompt(10, candidates=((1, 2, 3), (4,))),))], 16)
    assert ranked - plain == pytest.approx(1 + 2 * (0.1 + 10 * 0.01) + 4 * 0.5)
    one_by_one = dataclasses.replace(PACE, ranks_at_once=False)
    pair = [Step((prompt(10, candidates=((1, 2, 3), (4, 5))),))]
    assert one_by_one.seconds(pair, 16) - PACE.seconds(pair, 16) == pytest.approx(1)


def test_timing_changes_nothing_of_the_model(tiny_llama):
    model, ticks = opened(tiny_llama, 32), itertools.count()
    example = Example("k", "c", 99, np.arange(64, dtype=np.int32), 8)
    before = model.outcome(example)
    fed = model.fed_tokens
    pace = measured_pace(model, 512, lambda: float(next(ticks)))
    # every piece takes one tick: no difference between long and short ones
    assert pace == Pace(1.0, 0.0, 0.0, 0.0, 1 / 64)
    assert model.fed_tokens == fed
    assert np.array_equal(model.outcome(example).target_nll, before.target_nll)


def test_where_pieces_are_timed_again_the_fastest_counts(tiny_llama, monkeypatch):
    """As on a GPU, which sets its kernels up at the first piece of a shape: 100 ticks instead of
    one."""
    monkeypatch.setitem(REPEATS, "cpu", 4)
    passes = itertools.cycle([100.0, 1.0, 1.0, 1.0])
    now, starts = [0.0], itertools.cycle([True, False])

    def clock():
        now[0] += 0.0 if next(starts) else next(passes)
        return now[0]

    assert measured_pace(opened(tiny_llama, 32), 512, clock) == Pace(1.0, 0.0, 0.0, 0.0, 1 / 64)
