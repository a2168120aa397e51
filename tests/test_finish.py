"""`--finish`: a stopped training ends at its newest checkpoint and becomes a model."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from test_pipeline import settings

from giraffe_cli.config.building import build
from giraffe_cli.errors import Interrupted, InvalidInput, UsageError
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.facts_training import training_rows
from giraffe_cli.rundir import read_json
from giraffe_cli.training import check_can_finish

TRAIN = {"steps": 9, "window": 128, "checkpoint_every": 4, "warmup_steps": 1}
BLIND = Options(evaluate=False)
FINISH = replace(BLIND, finish=True)


class StopsAt(SilentReporter):
    """Sends this process SIGINT after so many steps, as a user at the keyboard does."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @contextlib.contextmanager
    def bar(self, description, total, unit, done=0):
        with super().bar(description, total, unit, done) as bar:
            advance = bar.advance

            def counted(steps, **fields):
                advance(steps, **fields)
                self._left -= description == "train"
                if not self._left:
                    os.kill(os.getpid(), signal.SIGINT)

            bar.advance = counted
            yield bar


def config_of(model, data, **train):
    return settings(model, data, train={**TRAIN, **train})


def adapter_of(run_dir):
    return load_file(run_dir / "adapter" / "adapter_model.safetensors")


@pytest.fixture
def stopped(tiny_llama, corpus, tmp_path):
    """A run of nine steps that was stopped after its third."""
    config, run_dir = config_of(tiny_llama, corpus), tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        extend(config, run_dir, BLIND, StopsAt(3))
    assert caught.value.message == "stopped after step 3 of 9; a checkpoint is saved"
    assert "or with --finish to end the training here" in caught.value.hint
    return config, run_dir


def test_a_stopped_training_becomes_the_model_of_its_last_step(stopped):
    config, run_dir = stopped
    reporter = SilentReporter()
    report = extend(config, run_dir, FINISH, reporter)
    assert "ended after step 3 of 9, as asked" in reporter.lines
    assert report["verify"]["ok"]
    (stage,) = report["stages"]
    assert (report["steps"], stage["steps"], stage["cut_short"]) == (3, 3, True)
    assert dict(training_rows(report))["training ended"] == "to 512, step 3: early, by --finish"
    saved = load_file(run_dir / "checkpoints" / "step-3" / "state.safetensors")
    pieces = [value for name, value in saved.items() if name.startswith("parameter/")]
    kept = list(adapter_of(run_dir).values())
    assert len(pieces) == len(kept) > 0
    for one in pieces:  # the names are those of the training, the values its last ones
        assert any(one.shape == other.shape and torch.equal(one, other) for other in kept)


def test_what_was_finished_stays_so(stopped):
    config, run_dir = stopped
    first = extend(config, run_dir, FINISH, SilentReporter())["stages"]
    adapter = adapter_of(run_dir)
    for options in (BLIND, FINISH):
        assert extend(config, run_dir, options, SilentReporter())["stages"] == first
    assert all(torch.equal(value, adapter[name]) for name, value in adapter_of(run_dir).items())
    assert read_json(run_dir / "training.json")["cut_short"]


def test_without_it_the_run_goes_on_to_its_end(stopped):
    config, run_dir = stopped
    report = extend(config, run_dir, BLIND, SilentReporter())
    assert (report["steps"], report["stages"][0]["cut_short"]) == (9, False)


def test_two_processes_end_at_the_checkpoint_of_one(tiny_llama, corpus, tmp_path):
    config, run_dir = config_of(tiny_llama, corpus, windows_per_step=2), tmp_path / "run"
    with pytest.raises(Interrupted):
        extend(config, run_dir, BLIND, StopsAt(2))
    alone = tmp_path / "alone"
    shutil.copytree(run_dir, alone)
    both = config_of(tiny_llama, corpus, windows_per_step=2, processes=2)
    assert extend(both, run_dir, FINISH, SilentReporter())["steps"] == 2
    extend(config, alone, FINISH, SilentReporter())
    one = adapter_of(alone)
    assert all(torch.equal(value, one[name]) for name, value in adapter_of(run_dir).items())


def test_where_nothing_was_saved_there_is_nothing_to_end_at(tiny_llama, corpus, tmp_path, giraffe):
    config, run_dir = config_of(tiny_llama, corpus), tmp_path / "run"
    with pytest.raises(UsageError, match=f"--finish: {run_dir} has no checkpoint"):
        check_can_finish(config, run_dir)
    command = ["extend", "--model", tiny_llama, "--data", corpus, "--target-len", "512"]
    refused = giraffe(*command, "--out", run_dir, "--finish")
    assert (refused.code, run_dir.exists()) == (2, False)
    assert "has no checkpoint" in refused.stderr
    both = giraffe(*command, "--out", run_dir, "--finish", "--dry-run")
    assert both.code == 2
    assert "--finish ends a training, --dry-run starts none" in both.stderr
    with pytest.raises(UsageError, match="nothing is trained"):
        check_can_finish(settings(tiny_llama, corpus, train={"steps": 0}), run_dir)


def test_a_damaged_checkpoint_is_no_end(stopped):
    config, run_dir = stopped
    (run_dir / "checkpoints" / "step-3" / "state.safetensors").write_bytes(b"")
    with pytest.raises(InvalidInput, match="there is nothing to end at"):
        extend(config, run_dir, FINISH, SilentReporter())
    assert not (run_dir / "adapter").exists()


def test_the_last_step_is_measured_as_that_of_every_run(tiny_llama, corpus, tmp_path):
    config, run_dir = config_of(tiny_llama, corpus, held_out_every=2), tmp_path / "run"
    with pytest.raises(Interrupted):
        extend(config, run_dir, BLIND, StopsAt(3))
    told = (run_dir / "metrics.jsonl").read_text().splitlines()
    at_two = [json.loads(line).get("held_out_nll") for line in told]
    assert [value is not None for value in at_two] == [False, True, False]
    (stage,) = extend(config, run_dir, FINISH, SilentReporter())["stages"]
    assert stage["held_out_nll"] not in (None, at_two[1])


def test_an_earlier_stage_does_not_offer_it(tiny_llama, corpus, tmp_path):
    stages = [{"target_length": 256, "steps": 4}, {"target_length": 512, "steps": 5}]
    config = settings(tiny_llama, corpus, train=TRAIN, target_length=512)
    config = build({**config.model_dump(exclude={"target_length"}), "stages": stages})
    with pytest.raises(Interrupted) as first:
        extend(config, tmp_path / "run", BLIND, StopsAt(2))
    assert "--finish" not in first.value.hint
    with pytest.raises(Interrupted) as last:
        extend(config, tmp_path / "run", BLIND, StopsAt(4))
    assert "or with --finish" in last.value.hint
    report = extend(config, tmp_path / "run", FINISH, SilentReporter())
    assert [(stage["steps"], stage["cut_short"]) for stage in report["stages"]] == [
        (4, False),
        (2, True),
    ]


def test_an_earlier_stage_is_not_ended_by_it(tiny_llama, corpus, tmp_path):
    config = build({"model": str(tiny_llama), "data": [str(corpus)], "stages": [256, 512]})
    (tmp_path / "run" / "stages" / "1-256" / "checkpoints" / "step-4").mkdir(parents=True)
    with pytest.raises(UsageError, match="an earlier stage that has not ended"):
        check_can_finish(config, tmp_path / "run")
