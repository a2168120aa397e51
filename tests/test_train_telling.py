"""What one sees while it trains, on one line of 100 columns."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console as RichConsole
from train_runs import Hooked, build_material, run

from giraffe_cli.cli.console import Console
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.step import StepOutcome
from giraffe_cli.train.telling import live_fields, metrics, three_figures


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0.00"),
        (0.523, "0.52"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.96, "100"),
        (999.0, "999"),
        (1234, "1.2k"),
        (12345, "12k"),
        (5.2e6, "5.2M"),
        (float("inf"), "inf"),
    ],
)
def test_figures_take_four_characters(value, expected):
    assert three_figures(value) == expected
    assert len(expected) <= 4


def stub(nll=2.3456):
    state = SimpleNamespace(held_out_nll=nll, step=3, trained_tokens=300, seconds=9.0)
    job = SimpleNamespace(config=TrainConfig())
    return SimpleNamespace(state=state, device=torch.device("cpu"), job=job)


def shown(width, fields):
    """The lines that the bar leaves on a terminal of `width` columns."""
    console, out = Console(), io.StringIO()
    console.err = RichConsole(
        file=out, force_terminal=True, width=width, soft_wrap=True, color_system=None
    )
    with console.bar("train", 1000, "steps", done=99) as bar:
        bar.advance(1, **fields)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def test_all_fields_of_a_step_stand_on_one_line_of_100_columns():
    fields = live_fields(stub(), StepOutcome(2.3456, 0.5234, 96543), 1.94e-4, 8.0, 7.7)
    *_, line = shown(100, fields)
    assert len(line) <= 100
    assert "100/1000 steps" in line
    for expected in ("loss 2.346", "held 2.346", "grad 0.52", "lr 1.9e-4", "tok/s 12k", "plan 96%"):
        assert expected in line
    assert re.search(r"GB \d", line)
    assert {len(part) <= 60 for part in shown(60, fields)} == {True}  # cut, not wrapped


def test_what_is_not_known_is_not_shown():
    fields = live_fields(stub(nll=None), StepOutcome(1.0, 1.0, 10), 2e-4, 1.0, None)
    assert set(fields) == {"loss", "grad", "lr", "tok/s", "GB"}
    assert fields["lr"] == "2e-4"


def test_a_skipped_step_is_valid_json_and_says_so():
    line = metrics(stub(), StepOutcome(float("nan"), float("inf"), 0), 1e-4, 2.0)
    assert (line["loss"], line["grad_norm"], line["skipped"]) == (None, None, True)
    assert "skipped" not in metrics(stub(), StepOutcome(1.0, 1.0, 8), 1e-4, 2.0)


def test_the_plan_travels_with_the_job_and_does_not_change_what_it_is(tiny_llama, tmp_path):
    material = build_material(tiny_llama, tmp_path)
    reporter = Hooked()
    run(material, tmp_path / "run", reporter, steps=1)
    assert "plan" not in reporter.fields
    job = TrainJob(
        checkpoint=material.checkpoint,
        table=material.table,
        packed_dir=material.packed,
        config=TrainConfig(),
        positions="pose",
        target_length=512,
        dtype="float32",
        seed=7,
        run_dir=tmp_path,
    )
    planned = replace(job, planned_seconds_per_step=2.5)
    assert TrainJob.from_json(planned.to_json()).planned_seconds_per_step == 2.5
    assert planned.identity("x") == job.identity("x")


def test_the_first_step_is_the_plan_of_the_others(tiny_llama, tmp_path):
    material = build_material(tiny_llama, tmp_path)
    seen = []
    reporter = Hooked(lambda step: seen.append("plan" in reporter.fields))
    run(material, tmp_path / "run", reporter, steps=3)
    assert seen == [False, True, True]
    assert any(line.startswith("measured: ") for line in reporter.lines)
