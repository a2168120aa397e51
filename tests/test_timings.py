"""Seconds by stage: what stopped and went on counts whole, what was skipped keeps its time."""

from __future__ import annotations

import time

import pytest

from giraffe_cli.errors import Interrupted
from giraffe_cli.rundir import read_json
from giraffe_cli.stages import Timings


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """`timed(10, "eval")` runs a stage of ten seconds in a call of its own; `stops` ends it."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def call(seconds: float, name: str, stops: bool = False) -> dict:
        timings = Timings.kept(tmp_path / "timings.json")
        with timings.stage(name):
            now[0] += seconds
            if stops:
                raise Interrupted("stopped")
        return read_json(tmp_path / "timings.json")

    return call


def test_a_stage_that_was_stopped_counts_whole(timed, tmp_path):
    timed(5, "pack")
    for _ in range(2):
        with pytest.raises(Interrupted):
            timed(10, "eval", stops=True)
    assert read_json(tmp_path / "timings.json") == {"pack": 5, "stopped": {"eval": 20}}
    assert timed(4, "eval") == {"pack": 5, "eval": 24}


def test_a_stage_that_is_skipped_keeps_the_time_of_its_real_run(timed):
    timed(10, "pack")
    assert timed(0.1, "pack") == {"pack": 10}


def test_a_training_that_was_killed_is_known_from_elsewhere(timed, tmp_path):
    timed(10, "train")
    timings = Timings.kept(tmp_path / "timings.json")
    timings.at_least("train", 30)
    assert read_json(tmp_path / "timings.json") == {"train": 30}


def test_nothing_is_written_where_no_folder_is(tmp_path):
    with pytest.raises(Interrupted), Timings(tmp_path / "gone" / "timings.json").stage("pack"):
        raise Interrupted("stopped")
    assert not (tmp_path / "gone").exists()
