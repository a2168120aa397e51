"""A run that is given more steps: the same bytes as one that had them from the start."""

from __future__ import annotations

import math

import pytest
from test_finish import BLIND, config_of
from train_runs import Hooked, adapter_bytes, build_material, run, timeless

from giraffe_cli.claim import claim
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.pipeline import extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.beginning import rates_before, shared_steps

CONSTANT = {"schedule": "constant"}
BEST = {"keep": "best"}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def train_config(**knobs) -> TrainConfig:
    return TrainConfig.model_validate(
        {"warmup_steps": 2, "learning_rate": 1.0, **CONSTANT, **knobs}
    )


# ── which steps two trainings share ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "now", "shared"),
    [
        ({"steps": 10}, {"steps": 20}, 10),
        ({"steps": 12}, {"steps": 11}, 10),
        ({"steps": 10}, {"steps": 9}, 0),  # the tenth was taken
        ({"steps": 10, "schedule": "wsd"}, {"steps": 20, "schedule": "wsd"}, 8),
        (
            {"steps": 10, "schedule": "wsd", "decay_steps": 4},
            {"steps": 20, "schedule": "wsd", "decay_steps": 4},
            5,
        ),
        ({"steps": 10}, {"steps": 20, "schedule": "wsd"}, 10),
        ({"steps": 10, "schedule": "cosine"}, {"steps": 20, "schedule": "cosine"}, 2),
        ({"steps": 10, "schedule": "cosine"}, {"steps": 10}, 2),
        ({"steps": 10, "warmup_steps": 9}, {"steps": 20, "warmup_steps": 10}, 0),
        (
            {"steps": 10, **BEST, "held_out_every": 5},
            {"steps": 20, **BEST, "held_out_every": 5},
            10,
        ),
        # the tenth was measured because it was the last, and that decides what is best
        ({"steps": 10, **BEST, "held_out_every": 4}, {"steps": 20, **BEST, "held_out_every": 4}, 8),
        ({"steps": 10, "held_out_every": 4}, {"steps": 20, "held_out_every": 4}, 10),
    ],
)
def test_the_steps_that_two_trainings_share(before, now, shared):
    """Of checkpoints after 10, 8, 5 and 2 steps: a wsd of ten decays over its last two, and the
    first step of a decay has the peak's rate still."""
    assert shared_steps([10, 8, 5, 2], train_config(**before), train_config(**now)) == shared


def test_rates_are_those_of_the_schedule():
    assert rates_before(4, train_config(steps=10)) == [0.5, 1.0, 1.0, 1.0]
    half_a_wave = rates_before(7, train_config(steps=10, schedule="cosine"))[-1]
    assert math.isclose(half_a_wave, 0.55)  # step 6, half-way between the 2nd and the 10th


# ── the same bytes ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("first", "then", "resumed_after"),
    [
        ({"steps": 3}, {"steps": 5}, 3),
        ({"steps": 5, "schedule": "wsd", "decay_steps": 2},
         {"steps": 7, "schedule": "wsd", "decay_steps": 2}, 4),
        ({"steps": 3}, {"steps": 5, "schedule": "wsd", "decay_steps": 1}, 3),
        ({"steps": 4, "keep": "best", "held_out_every": 2},
         {"steps": 6, "keep": "best", "held_out_every": 2}, 4),
        # the last step of the first is measured out of turn, which decides what is best
        ({"steps": 3, "keep": "best", "held_out_every": 2},
         {"steps": 6, "keep": "best", "held_out_every": 2}, 2),
    ],
    ids=["more", "wsd", "to wsd", "best", "best, out of turn"],
)  # fmt: skip
def test_a_training_goes_on_as_if_it_had_been_asked_for_at_once(
    material, tmp_path, first, then, resumed_after
):
    first, then = ({**CONSTANT, **knobs} for knobs in (first, then))
    run(material, tmp_path / "run", **first)
    reporter = Hooked()
    run(material, tmp_path / "run", reporter, **then)
    assert f"resuming after step {resumed_after} of {then['steps']}" in reporter.lines
    run(material, tmp_path / "at-once", **then)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(tmp_path / "at-once")
    assert timeless(tmp_path / "run") == timeless(tmp_path / "at-once")


def test_checkpoints_of_other_rates_are_no_beginning(material, tmp_path):
    """Those of the decay go, where one before it is gone on from."""
    decays = {"schedule": "wsd", "decay_steps": 1, "checkpoint_every": 1, "keep_checkpoints": 9}
    run(material, tmp_path / "run", steps=4, **decays)
    reporter = Hooked()
    run(material, tmp_path / "run", reporter, steps=6, **decays)
    assert "resuming after step 4 of 6" in reporter.lines  # a decay of one step begins at the peak
    run(material, tmp_path / "two", steps=4, **{**decays, "decay_steps": 2})
    run(material, tmp_path / "two", reporter, steps=6, **{**decays, "decay_steps": 2})
    assert any("removed 1 checkpoint, damaged or of other" in line for line in reporter.warnings)
    assert "resuming after step 3 of 6" in reporter.lines


# ── whose folder it is ───────────────────────────────────────────────────────────────────────────


def test_the_same_command_with_more_steps_makes_a_longer_run(tiny_llama, corpus, tmp_path):
    first = extend(
        config_of(tiny_llama, corpus, steps=4, **CONSTANT), tmp_path, BLIND, SilentReporter()
    )
    reporter = SilentReporter()
    longer = extend(config_of(tiny_llama, corpus, steps=6, **CONSTANT), tmp_path, BLIND, reporter)
    assert "resuming after step 4 of 6" in reporter.lines
    assert (first["steps"], longer["steps"]) == (4, 6)
    assert longer["trained_tokens"] == first["trained_tokens"] * 6 // 4
    assert longer["verify"]["ok"]
    assert read_yaml(tmp_path / "run.yaml")["train"]["steps"] == 6


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (
            {"schedule": "cosine"},
            {"schedule": "cosine", "steps": 12},
            "to 9 steps with train.schedule: cosine; no checkpoint of it is a beginning of 12 "
            "steps with cosine",
        ),
        ({}, {"steps": 7}, "has taken 8 of 9 steps; 7 are asked for"),
        ({}, {"steps": 12, "learning_rate": 1e-3}, "train.learning_rate, train.steps"),
        ({}, {"steps": 0}, "different: train.steps"),
    ],
)
def test_what_is_no_beginning_is_refused_with_the_reason(tmp_path, first, then, words):
    def config(**train):
        values = {"steps": 9, "warmup_steps": 1, **CONSTANT, **train}
        return build({"model": "calf", "target_length": 4096, "train": values})

    claim(config(**first), tmp_path)
    for step in (4, 8):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    with pytest.raises(InvalidInput) as refused:
        claim(config(**then), tmp_path)
    assert words in refused.value.message
    assert read_yaml(tmp_path / "run.yaml")["train"]["steps"] == 9


def test_a_run_of_stages_keeps_its_steps(tmp_path):
    def config(steps):
        stages = [{"target_length": 2048}, {"target_length": 4096}]
        return build({"model": "calf", "stages": stages, "train": {"steps": steps}})

    claim(config(9), tmp_path)
    (tmp_path / "checkpoints" / "step-4").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-4" / "manifest.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"different: train\.steps$"):
        claim(config(12), tmp_path)
