"""The learning rate at points one can name, with peak 1."""

from __future__ import annotations

import pytest

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.opening import warn_of_schedule
from giraffe_cli.train.schedule import learning_rate


def rates(at, **settings):
    config = TrainConfig(learning_rate=1.0, **settings)
    return [learning_rate(step, config) for step in at]


def test_warm_up_rises_by_equal_parts_and_reaches_the_peak_with_its_last_step():
    for schedule in ("cosine", "constant", "wsd"):
        found = rates((0, 4, 9, 10), steps=110, warmup_steps=10, schedule=schedule)
        assert found == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert rates((0,), steps=5, warmup_steps=0, schedule="constant") == [1.0]


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_a_tenth():
    found = rates((10, 60, 110), steps=110, warmup_steps=10, schedule="cosine")
    assert found == pytest.approx([1.0, 0.55, 0.1])


def test_constant_stays_at_the_peak():
    assert rates((10, 109), steps=110, warmup_steps=10, schedule="constant") == [1.0, 1.0]


def test_wsd_is_flat_until_a_fifth_of_the_steps_is_left_and_reaches_nought_after_the_last():
    found = rates((10, 79, 80, 90, 99, 100), steps=100, warmup_steps=10, schedule="wsd")
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.05, 0.0])


def test_wsd_decays_over_as_many_steps_as_it_is_told():
    found = rates((94, 96, 99, 100), steps=100, warmup_steps=10, schedule="wsd", decay_steps=4)
    assert found == pytest.approx([1.0, 1.0, 0.25, 0.0])


def test_wsd_of_fewer_than_five_steps_is_at_the_peak_until_after_the_last():
    """A fifth of four steps is none; it decays over one."""
    found = rates((0, 2, 3, 4), steps=4, warmup_steps=0, schedule="wsd")
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"warmup_steps": 9, "schedule": "constant"}, False),
        ({"warmup_steps": 10, "schedule": "constant"}, True),
        ({"warmup_steps": 5, "schedule": "wsd", "decay_steps": 4}, False),
        ({"warmup_steps": 5, "schedule": "wsd", "decay_steps": 5}, True),
    ],
)
def test_a_peak_that_is_never_held_is_said_aloud(settings, warned):
    reporter = SilentReporter()
    warn_of_schedule(TrainConfig(steps=10, **settings), reporter)
    assert bool(reporter.warnings) == warned
