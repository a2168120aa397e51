"""Levers that a run settles on, keeps, and gives up once when the first step runs out of memory.

The allocator's failure is a made-up one where it must come at a certain step, and a real one, under
a limit on the address space, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from train_runs import SETTINGS, adapter_bytes, build_material

import giraffe_cli.train.loop as loop
from giraffe_cli.config.building import build
from giraffe_cli.errors import DoesNotFit, FirstStepDoesNotFit, GiraffeError, InvalidInput
from giraffe_cli.fitting import Fit, read_levers
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import read_json
from giraffe_cli.train.loop import train_stage
from giraffe_cli.train.memory_errors import memory_errors_told
from giraffe_cli.train.parallel import raise_what_workers_told

ALLOCATOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:128] . DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def fit_of(material, folder, reporter=None, **changes):
    config = build({"target_length": 512, "train": {**SETTINGS, "loss_chunk": "auto", **changes}})
    return Fit(material.checkpoint, config, folder, reporter or SilentReporter())


def start_of(material, fit):
    """`train_stage` as `training.py` calls it."""

    def start(**given):
        return train_stage(
            material.checkpoint,
            material.table,
            material.packed,
            fit.config.train,
            positions="pose",
            target_length=512,
            dtype="float32",
            seed=7,
            run_dir=fit.folder,
            reporter=fit.reporter,
            **given,
        )

    return start


@pytest.fixture
def failing(monkeypatch):
    """Makes training steps fail, by their number among all that are tried."""

    def fail_at(*numbers, error=ALLOCATOR):
        real, tried = loop.train_step, []

        def step(run, rate):
            tried.append(run.job.levers)
            if len(tried) in numbers:
                raise error
            return real(run, rate)

        monkeypatch.setattr(loop, "train_step", step)
        return tried

    return fail_at


@pytest.mark.parametrize(
    "error",
    [
        ALLOCATOR,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        torch.AcceleratorError("CUDA error: out of memory"),  # pinned memory
    ],
)
def test_the_first_step_is_tried_once_more_a_rung_down(material, tmp_path, failing, error):
    tried = failing(1, error=error)
    reporter = SilentReporter()
    fit = fit_of(material, tmp_path, reporter)
    result = fit.train(start_of(material, fit))
    assert result.steps == SETTINGS["steps"]
    gave_up, now = tried[0], tried[1]
    assert gave_up.checkpointing == "none"  # a tiny model fits anywhere
    assert now.checkpointing == "attention"
    (warning,) = [w for w in reporter.warnings if "memory ran out" in w]
    assert "memory ran out in step 1" in warning
    assert f"Trying once more with {now.sentence}" in warning
    kept = read_json(tmp_path / "levers.json")
    assert kept["levers"] == now.to_json()
    assert [entry["gave_up"] for entry in kept["given_up"]] == [gave_up.to_json()]


def test_the_second_try_has_the_memory_of_the_first(material, tmp_path, monkeypatch):
    """The error's frames held the model and its activations: a card had to hold both tries."""
    real, first = loop.train_step, []

    def step(run, rate):
        if first:
            assert [one() for one in first] == [None, None]
            return real(run, rate)
        activations = torch.zeros(3)
        first.extend([weakref.ref(run.model), weakref.ref(activations)])
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "train_step", step)
    fit = fit_of(material, tmp_path)
    assert fit.train(start_of(material, fit)).steps == SETTINGS["steps"]


def test_what_is_learnt_does_not_change_by_it(material, tmp_path, failing):
    plain = fit_of(material, tmp_path / "plain", checkpointing="attention", mlp_tile="none")
    plain.train(start_of(material, plain))
    failing(1)
    fit = fit_of(material, tmp_path / "retried")
    fit.train(start_of(material, fit))
    assert read_levers(fit.folder) == read_levers(plain.folder)
    assert adapter_bytes(fit.folder) == adapter_bytes(plain.folder)


def test_a_second_failure_ends_with_exit_4(material, tmp_path, failing):
    tried = failing(1, 2)
    fit = fit_of(material, tmp_path)
    with pytest.raises(DoesNotFit, match="on the second try as well") as failure:
        fit.train(start_of(material, fit))
    assert (failure.value.exit_code, len(tried)) == (4, 2)
    assert "giraffe plan" in failure.value.hint


def test_a_failure_in_a_later_step_is_not_retried_and_the_checkpoint_stands(
    material, tmp_path, failing
):
    tried = failing(4)
    fit = fit_of(material, tmp_path)
    with pytest.raises(DoesNotFit, match="in step 4: .*; the checkpoint before step 4 stands"):
        fit.train(start_of(material, fit))
    assert len(tried) == 4
    again = fit_of(material, tmp_path)
    assert again.train(start_of(material, again)).steps == SETTINGS["steps"]
    assert len(tried) == 4 + 3  # from the checkpoint of step 2


def test_without_a_rung_below_nothing_is_retried(material, tmp_path, failing):
    tried = failing(1)
    fixed = {"checkpointing": "full", "offload": "disk", "mlp_tile": 16, "loss_chunk": 8}
    fit = fit_of(material, tmp_path, **fixed)
    with pytest.raises(DoesNotFit, match="no setting of the levers needs less"):
        fit.train(start_of(material, fit))
    assert len(tried) == 1


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors_told(0, is_first=True):
        raise RuntimeError("shapes do not match")


def test_a_resumed_stage_keeps_its_levers_until_the_config_says_otherwise(material, tmp_path):
    kept = Levers("full", "none", 16, 8)
    (tmp_path / "levers.json").write_text(json.dumps({"levers": kept.to_json(), "given_up": []}))
    given = []
    fit_of(material, tmp_path).train(lambda **values: given.append(values["levers"]))
    fit_of(material, tmp_path, loss_chunk=32).train(lambda **v: given.append(v["levers"]))
    assert given[0] == kept
    assert given[1].loss_chunk == 32


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("trained", ["checkpoints/step-2", "adapter", None])
def test_under_dropout_the_levers_that_draw_masks_stay_what_the_weights_were_trained_by(
    material, tmp_path, dropout, trained
):
    """What is settled anew takes tiles of 1,024 or none; 16 is nobody's choice."""
    kept = Levers("attention", "none", 16, 8, whole_layers=1)
    (tmp_path / "levers.json").write_text(json.dumps({"levers": kept.to_json(), "given_up": []}))
    if trained:
        (tmp_path / trained).mkdir(parents=True)
    given = []
    changed = {"checkpointing": "full", "mlp_tile": "auto", "lora": {"rank": 4, "dropout": dropout}}
    fit_of(material, tmp_path, **changed).train(lambda **values: given.append(values["levers"]))
    of_masks = (given[0].mlp_tile, given[0].projection_tile, given[0].whole_layers)
    assert given[0].checkpointing == "full"
    assert (of_masks == (16, 0, 1)) == bool(dropout and trained)
    assert read_levers(tmp_path) == given[0]


def test_under_dropout_what_would_draw_other_masks_is_refused(material, tmp_path):
    kept = Levers("attention", "none", 16, 8)
    (tmp_path / "levers.json").write_text(json.dumps({"levers": kept.to_json(), "given_up": []}))
    (tmp_path / "checkpoints" / "step-2").mkdir(parents=True)
    changed = {"checkpointing": "none", "mlp_tile": "auto", "lora": {"rank": 4, "dropout": 0.1}}
    with pytest.raises(InvalidInput, match=r"began with mlp_tile: 16, .*mlp_tile needs checkpoint"):
        fit_of(material, tmp_path, **changed).train(lambda **_: pytest.fail("trained all the same"))
    assert read_levers(tmp_path) == kept


def test_a_stage_is_planned_with_what_the_one_before_took(material, tmp_path):
    """Twice as slow as assumed: so will the next be."""
    first = fit_of(material, tmp_path / "first")
    result = first.train(start_of(material, first))
    assumed = first._planned(read_levers(first.folder))
    assert assumed is None
    slower = first.measured_over_assumed(result)
    second = Fit(
        material.checkpoint, first.config, tmp_path / "second", SilentReporter(), slower=slower
    )
    given = {}
    second.train(lambda **values: given.update(values))
    assert given["planned_seconds_per_step"] == pytest.approx(result.seconds / result.steps)


def test_a_stage_that_has_ended_asks_no_more_whether_it_would_fit(material, tmp_path, monkeypatch):
    """Its activations waited in host memory, of which less is free by now than they took."""
    levers = Levers("full", "host", offload_layers=1)
    (tmp_path / "levers.json").write_text(json.dumps({"levers": levers.to_json(), "given_up": []}))
    gpu = Machine("cuda", 1, 80 * 10**9, host_bytes=1)
    monkeypatch.setattr("giraffe_cli.fitting.this_machine", lambda: gpu)
    fit = fit_of(material, tmp_path, offload="host", offload_layers=1, checkpointing="full")
    with pytest.raises(DoesNotFit, match="pins at least"):
        fit._rungs(levers)
    assert fit.measured_over_assumed(SimpleNamespace(seconds=3.0, steps=1)) > 0


def test_levers_are_chosen_by_what_documents_leave_over_of_attention(material, tmp_path):
    given = []
    for share in (1.0, 0.25):
        fit = dataclasses.replace(
            fit_of(material, tmp_path / str(share)), attention_share=share, slower=1.0
        )
        fit.train(lambda **values: given.append(values["planned_seconds_per_step"]))
    assert given[1] < given[0]


# ── several processes ────────────────────────────────────────────────────────────────────────


def test_a_workers_failure_reaches_the_parent_as_what_it_is(tmp_path):
    told = {"kind": "FirstStepDoesNotFit", "message": "memory ran out in step 1", "hint": "x"}
    (tmp_path / "error-1.json").write_text(json.dumps(told))
    lost = {"kind": "", "message": "RuntimeError: Connection closed by peer", "hint": None}
    (tmp_path / "error-0.json").write_text(json.dumps(lost))
    with pytest.raises(FirstStepDoesNotFit, match="memory ran out in step 1"):
        raise_what_workers_told(tmp_path, 1)


def test_a_killed_worker_is_named(tmp_path):
    """The lines are those of torch 2.13's launcher."""
    (tmp_path / "log.txt").write_text(
        "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n"
        "  exitcode  : -9 (pid: 4711)\n  traceback : Signal 9 (SIGKILL) received by PID 4711\n"
    )
    lost = {"kind": "", "message": "RuntimeError: Connection closed by peer", "hint": None}
    (tmp_path / "error-0.json").write_text(json.dumps(lost))
    with pytest.raises(DoesNotFit, match="killed .signal 9.") as failure:
        raise_what_workers_told(tmp_path, 1)
    assert failure.value.exit_code == 4


def test_whom_the_launcher_killed_after_anothers_error_did_not_run_out_of_memory(tmp_path):
    (tmp_path / "log.txt").write_text(
        "Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -9 (pid: 1)\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  rank      : 1 (local_rank: 1)\n"
        "  exitcode  : 1 (pid: 4711)\n"
    )
    own = {"kind": "", "message": "KeyError: 'x'", "hint": None}
    (tmp_path / "error-1.json").write_text(json.dumps(own))
    with pytest.raises(GiraffeError, match="KeyError: 'x'") as failure:
        raise_what_workers_told(tmp_path, 1)
    assert failure.value.exit_code == 1


@pytest.mark.parametrize("log", ["log.txt", "log-1.txt"])
def test_a_worker_ended_by_a_signal_is_named_not_the_peer_that_lost_it(tmp_path, log):
    """The launcher kills who is left: what failed first stands last."""
    (tmp_path / log).write_text(
        "Failures:\n[1]:\n  rank      : 0 (local_rank: 0)\n  exitcode  : -9 (pid: 1)\n---\n"
        "Root Cause (first observed failure):\n[0]:\n  rank      : 3 (local_rank: 1)\n"
        "  exitcode  : -11 (pid: 4711)\n  traceback : Signal 11 (SIGSEGV) received by PID 4711\n"
    )
    lost = {"kind": "", "message": "RuntimeError: Connection closed by peer", "hint": None}
    (tmp_path / "error-0.json").write_text(json.dumps(lost))
    with pytest.raises(GiraffeError, match="process 3 of the training was ended by SIGSEGV"):
        raise_what_workers_told(tmp_path, 1)


# ── the real allocator ───────────────────────────────────────────────────────────────────────

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from giraffe_cli.errors import FirstStepDoesNotFit, GiraffeError
from giraffe_cli.train.memory_errors import memory_errors_told

torch.ones(8) @ torch.ones(8)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), used + (256 << 20)))
try:
    with memory_errors_told(0, is_first=True):
        torch.empty(1 << 30)
except FirstStepDoesNotFit as error:
    sys.exit(f"told: {error.message}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_torchs_cpu_allocator_is_recognised_under_a_limit():
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert "told: memory ran out in step 1" in done.stderr
    assert "4294967296 bytes" in done.stderr
