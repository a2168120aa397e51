"""Signals while training: a checkpoint is saved once, wherever the signal falls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from train_runs import Hooked, adapter_bytes, build_material, checkpoints, run

from giraffe_cli.errors import Interrupted
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import MANIFEST
from giraffe_cli.train import parallel
from giraffe_cli.train import run as run_module
from giraffe_cli.train.launcher import run_launcher
from giraffe_cli.train.signals import STOP_SIGNALS, stop_requests


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run(material, run_dir, **MEASURED)
    return run_dir


MEASURED = {"held_out_every": 1, "held_out_windows": 2}


def within(monkeypatch, name, at_call):
    """Let a SIGTERM fall into the `at_call`-th call of `run_module.name`; the calls, counted."""
    original, calls = getattr(run_module, name), []

    def disturbed(*args, **kwargs):
        calls.append(name)
        if len(calls) == at_call:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(run_module, name, disturbed)
    return calls


@pytest.mark.parametrize(
    ("name", "at_call", "step"),
    [
        ("held_out_nll", 3, 3),  # the measurement after step 3, which is not saved by itself
        ("held_out_nll", 2, 2),  # after step 2, which is
        ("save_checkpoint", 1, 2),  # while step 2 is being saved
    ],
)
def test_a_signal_while_measuring_or_saving_ends_after_that_step_with_one_save(
    material, undisturbed, tmp_path, monkeypatch, name, at_call, step
):
    saves = []
    with monkeypatch.context() as patch:
        original = run_module.save_checkpoint
        patch.setattr(
            run_module,
            "save_checkpoint",
            lambda folder, state, *rest: (
                saves.append(state.step),
                original(folder, state, *rest),
            ),
        )
        within(patch, name, at_call)
        with pytest.raises(Interrupted, match=f"stopped after step {step} of 5"):
            run(material, tmp_path, **MEASURED)
    assert saves == [2, 3][: step - 1]
    assert (tmp_path / "checkpoints" / f"step-{step}" / MANIFEST).exists()
    run(material, tmp_path, **MEASURED)
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_second_signal_within_the_step_aborts_at_once(material, undisturbed, tmp_path):
    def twice(step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored, where a shell started this in background
    with pytest.raises(KeyboardInterrupt):
        run(material, tmp_path, Hooked(twice), **MEASURED)
    assert checkpoints(tmp_path) == {"step-2"}
    assert signal.getsignal(signal.SIGINT) is before
    run(material, tmp_path, **MEASURED)
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_signal_in_the_last_step_ends_the_command_after_the_adapter(
    material, undisturbed, tmp_path
):
    reporter = Hooked(lambda step: step == 5 and signal.raise_signal(signal.SIGUSR1))
    with pytest.raises(Interrupted, match="the adapter is written"):
        run(material, tmp_path, reporter, **MEASURED)
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed)


def test_a_signal_while_the_workers_end_is_not_lost(tmp_path, monkeypatch):
    """They have looked for a stop for the last time; the stage after this one must not begin."""

    def ending(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(parallel, "run_launcher", ending)
    with pytest.raises(Interrupted, match="stopped after the training; what it wrote stands"):
        parallel.launch({}, tmp_path, 2, SilentReporter())


def test_a_worker_leaves_signals_to_its_parent(tmp_path):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_requests(tmp_path / "stop") as stop:
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
        assert not stop.requested
        (tmp_path / "stop").touch()
        assert stop.requested


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_every_process_of_the_job_saves_and_exits_130(tmp_path, corpus, number):
    """As Slurm sends it: to the command, torch's launcher and both workers at once."""
    from conftest import build_tiny_llama

    model, out = build_tiny_llama(tmp_path / "model"), tmp_path / "run"
    command = [
        *(sys.executable, "-m", "giraffe_cli", "extend", "--model", str(model)),
        *("--data", str(corpus), "--target-len", "512", "--window", "128", "--out", str(out)),
        *("--steps", "100000", "--no-eval", "--set", "train.processes=2"),
        *("--set", "train.windows_per_step=2"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
            assert time.monotonic() < deadline, "training did not begin"
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.2)
        for pid in family(process.pid):
            os.kill(pid, number)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "a checkpoint is saved" in said
    assert checkpoints(out)


def family(pid):
    """`pid` and all processes below it."""
    found = [pid]
    for parent in found:
        with open(f"/proc/{parent}/task/{parent}/children") as handle:
            found += [int(child) for child in handle.read().split()]
    return found


def test_workers_of_a_launcher_that_is_killed_end_too(tmp_path):
    """They hold its output open, which is heard to its end."""
    worker = "import sys; print('at work', flush=True); sys.stdin.read()"
    script = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {worker!r}])\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    heard: list[str] = []
    command = [sys.executable, "-c", script]
    code = run_launcher(command, tmp_path / "log.txt", 1, {}, hear=heard.extend)
    assert (code, heard) == (-signal.SIGKILL, ["at work\n"])
