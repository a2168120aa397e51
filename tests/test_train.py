"""Training: the loss is what it claims, and no kill, resume or process count changes the result."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from train_runs import SETTINGS, STEPS, Hooked, adapter_bytes, build_material, metrics, run

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.store import Row, open_packed
from giraffe_cli.errors import (
    DoesNotFit,
    FirstStepDoesNotFit,
    GiraffeError,
    Interrupted,
    InvalidInput,
    UsageError,
)
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.lora import add_lora
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.plan.processes import bytes_per_process
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import MANIFEST, read_json, write_json
from giraffe_cli.train import parallel, process
from giraffe_cli.train.data import WindowStream, next_token_labels
from giraffe_cli.train.job import TrainJob


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def undisturbed(material, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return SimpleNamespace(run_dir=run_dir, result=run(material, run_dir))


# ── which windows ────────────────────────────────────────────────────────────────────────────────


def stream(rows=10, windows_per_step=4, window=8):
    class Rows:
        squares = np.full(rows, 3.0**2 + 2.0**2)

        def __len__(self):
            return rows

        def row(self, index):
            ids = np.arange(5, dtype=np.int32) + 10 * index
            return Row(ids, np.array([3, 2], dtype=np.int32), [f"a{index}", f"b{index}"])

    return WindowStream(Rows(), make_positions("pose"), window, 100, 3, windows_per_step)


def test_labels_stay_inside_their_document():
    row = Row(np.array([5, 6, 7, 8, 9, 4]), np.array([3, 2, 1]), ["a", "b", "c"])
    assert next_token_labels(row).tolist() == [6, 7, -100, 9, -100, -100]


def test_every_row_is_trained_once_an_epoch_in_another_order():
    windows = [stream().build(index) for index in range(20)]
    epochs = [[w.doc_ids[0] for w in part] for part in (windows[:10], windows[10:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [f"a{n}" for n in range(10)]
    assert epochs[0] != epochs[1]
    assert windows[0].num_targets == 3
    assert windows[0].labels.tolist().count(-100) == 2


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_a_step_without_changing_it(processes):
    whole = {w.doc_ids: w for w in stream().of_step(3, range(4))}
    places = [stream().share(3, rank, processes) for rank in range(processes)]
    assert {len(share) for share in places} == {4 // processes}
    assert sorted(itertools.chain(*places)) == [0, 1, 2, 3]
    for window in (w for share in places for w in stream().of_step(3, share)):
        assert torch.equal(window.position_ids, whole[window.doc_ids].position_ids)
        assert window.dropout_seed == whole[window.doc_ids].dropout_seed


def test_pose_positions_rise_inside_each_document_below_the_target():
    positions = stream().build(0).position_ids[0].tolist()
    for piece in (positions[:3], positions[3:]):
        assert piece == sorted(set(piece))
        assert piece[0] >= 0
        assert piece[-1] < 100


def test_a_row_longer_than_the_window_is_refused():
    with pytest.raises(InvalidInput, match="holds 5 tokens, the window is 4"):
        stream(window=4).build(0)


# ── what a step computes ─────────────────────────────────────────────────────────────────────────


def test_loss_and_gradient_norm_equal_stock_transformers_document_by_document(material, tmp_path):
    """One step of two windows against eager attention on each document alone and torch's loss."""
    without_dropout = {**SETTINGS["lora"], "dropout": 0.0}
    run(material, tmp_path, steps=1, lora=without_dropout)
    first = metrics(tmp_path)[0]

    config = TrainConfig.model_validate({**SETTINGS, "lora": without_dropout})
    job = TrainJob(
        *(material.checkpoint, material.table, material.packed, config),
        *("pose", 512, "float32", 7, tmp_path),
    )
    windows = WindowStream(open_packed(material.packed), make_positions("pose"), 64, 512, 7, 2)
    base = load_model(
        job.checkpoint.path, dtype=torch.float32, table=job.table, attn_implementation="eager"
    )
    model = add_lora(base, config.lora, seed=7)
    total, targets = torch.zeros(()), 0
    assert max(len(window.seq_lengths) for window in windows.of_step(0, range(2))) > 1
    for window in windows.of_step(0, range(2)):
        ids, where = window.input_ids[0], window.position_ids[0]
        for piece, positions in zip(
            ids.split(window.seq_lengths), where.split(window.seq_lengths), strict=True
        ):
            # a mask of ones: positions that jump must not be taken for new documents
            logits = model(
                piece[None],
                position_ids=positions[None],
                attention_mask=torch.ones(1, len(piece)),
                use_cache=False,
            ).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits[:-1], piece[1:], reduction="sum"
            )
            targets += len(piece) - 1
    (total / targets).backward()
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert first["loss"] == pytest.approx(total.item() / targets, rel=1e-6)
    assert first["grad_norm"] == pytest.approx(torch.stack(norms).norm().item(), rel=1e-5)


def test_training_lowers_the_loss(material, tmp_path):
    """By 0.1 nats: a random model's frozen head leaves no more to an adapter."""
    run(material, tmp_path, steps=16, learning_rate=1e-2, schedule="constant")
    losses = [entry["loss"] for entry in metrics(tmp_path)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_bfloat16_trains_float32_adapters_to_nearly_the_same_loss(material, undisturbed, tmp_path):
    from safetensors.torch import load_file

    run(material, tmp_path, dtype="bfloat16")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    exact = metrics(undisturbed.run_dir)[0]["loss"]
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(exact, rel=1e-2)  # 8 bits of mantissa


def test_checkpointed_layers_change_nothing(material, undisturbed, tmp_path):
    run(material, tmp_path, checkpointing="none")
    ours, theirs = (
        [entry["loss"] for entry in metrics(where)] for where in (tmp_path, undisturbed.run_dir)
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_a_loss_that_is_no_number_names_the_documents(material, tmp_path):
    with pytest.raises(GiraffeError, match=r"step 2: loss .* from documents `.*doc-\d+") as failure:
        run(material, tmp_path, learning_rate=1e30)
    assert "train.learning_rate" in failure.value.hint


# ── stopping and resuming ────────────────────────────────────────────────────────────────────────


def test_files_of_a_finished_run(undisturbed):
    result = undisturbed.result
    assert result.steps == STEPS
    assert result.adapter_dir == undisturbed.run_dir / "adapter"
    assert result.final_loss == metrics(undisturbed.run_dir)[-1]["loss"]
    assert result.trained_tokens == metrics(undisturbed.run_dir)[-1]["tokens"]
    names = {path.name for path in (undisturbed.run_dir / "checkpoints").iterdir()}
    assert names == {"step-4", "step-5"}
    state = read_json(undisturbed.run_dir / "checkpoints" / "step-5" / "state.json")
    assert (state["step"], state["epoch"] * 1000 + state["row"]) == (5, 10)


def test_a_finished_run_is_not_trained_again(material, undisturbed):
    def never(step):
        raise AssertionError

    assert run(material, undisturbed.run_dir, Hooked(never)) == undisturbed.result


@pytest.mark.parametrize("crash_at", [1, 2, 3, 5])
def test_a_crash_between_any_two_steps_changes_no_byte(material, undisturbed, tmp_path, crash_at):
    def crash(step):
        if step == crash_at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        run(material, tmp_path, Hooked(crash))
    run(material, tmp_path)
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed.run_dir)
    assert [entry["step"] for entry in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    timeless = [
        [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in metrics(where)]
        for where in (tmp_path, undisturbed.run_dir)
    ]
    assert timeless[0] == timeless[1]


def test_sigkill_in_another_process_changes_no_byte(material, undisturbed, tmp_path):
    for kill_at in (2, 3, 4):
        child = os.fork()
        if child == 0:
            try:
                run(
                    material,
                    tmp_path,
                    Hooked(lambda s, at=kill_at: s == at and os.kill(os.getpid(), signal.SIGKILL)),
                )
            finally:
                os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    run(material, tmp_path)
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed.run_dir)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_in_hand_and_the_same_call_resumes(
    material, undisturbed, tmp_path, number
):
    reporter = Hooked(lambda step: step == 3 and signal.raise_signal(number))
    with pytest.raises(Interrupted, match="stopped after step 3 of 5"):
        run(material, tmp_path, reporter)
    assert (tmp_path / "checkpoints" / "step-3" / MANIFEST).exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again = Hooked()
    run(material, tmp_path, again)
    assert "resuming after step 3 of 5" in again.lines
    assert adapter_bytes(tmp_path) == adapter_bytes(undisturbed.run_dir)


def test_a_damaged_checkpoint_is_passed_over(material, undisturbed, tmp_path):
    shutil.copytree(undisturbed.run_dir, tmp_path / "run")
    (tmp_path / "run" / "adapter" / MANIFEST).unlink()
    tensors = tmp_path / "run" / "checkpoints" / "step-5" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\0")
    reporter = Hooked()
    run(material, tmp_path / "run", reporter)
    assert "resuming after step 4 of 5" in reporter.lines
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(undisturbed.run_dir)


# ── several processes ────────────────────────────────────────────────────────────────────────────


def test_two_processes_repeat_the_losses_of_one(material, undisturbed, tmp_path):
    """Equal up to the order of a float32 sum: 1e-5."""
    reporter = Hooked()
    run(material, tmp_path, reporter, processes=2)
    # where the machine's own name does not resolve, workers would never meet by it
    meeting = "torch.distributed.run --standalone --local-addr 127.0.0.1"
    assert any(meeting in line for line in reporter.lines)
    assert reporter.done == STEPS
    for ours, theirs in zip(metrics(tmp_path), metrics(undisturbed.run_dir), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["tokens"] == theirs["tokens"]


@pytest.mark.slow
def test_a_signal_to_the_parent_saves_in_the_workers(material, tmp_path):
    reporter = Hooked(lambda step: step == 2 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        run(material, tmp_path, reporter, processes=2, steps=200)
    assert list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_an_error_in_a_worker_is_the_error_of_the_command(material, tmp_path):
    with pytest.raises(InvalidInput, match="`v_prj` matches no linear layer"):
        run(material, tmp_path, processes=2, lora={"targets": ["v_prj"]})


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """What the parent is told of a worker that ends in an error."""
    monkeypatch.setattr(process, "_die_with_the_parent", lambda: None)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path / "request.json")])
    monkeypatch.setenv("RANK", "1")
    write_json(tmp_path / "request.json", {})

    def told_of(error):
        def work(request, reporter, stop):
            raise error

        assert process.run_worker(work) == 1
        with pytest.raises(DoesNotFit) as failure:
            parallel.raise_what_workers_told(tmp_path, 1)
        return failure.value

    return told_of


def test_a_worker_whose_device_is_full_tells_so(worker):
    """A base that does not fit beside what others hold fails before the first step."""
    told = worker(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB."))
    assert told.message.startswith("memory ran out: CUDA out of memory. Tried")
    assert told.exit_code == 4


def test_a_worker_whose_first_step_does_not_fit_tells_so(worker):
    """The parent tries again by the kind alone; the message quotes what the allocator said."""
    error = FirstStepDoesNotFit("memory ran out in step 1: can't allocate memory", "less to do")
    told = worker(error)
    assert (type(told), told.message, told.hint) == (type(error), error.message, error.hint)


def test_the_error_of_a_worker_comes_back_with_kind_and_hint(tmp_path):
    parallel.tell_error(tmp_path, 0, RuntimeError("connection closed by peer"))
    parallel.tell_error(tmp_path, 1, InvalidInput("bad row", "mend it"))
    with pytest.raises(InvalidInput, match="bad row") as failure:
        parallel.raise_what_workers_told(tmp_path, 1)
    assert failure.value.hint == "mend it"


def test_a_worker_that_dies_without_a_word_points_to_its_log(tmp_path):
    with pytest.raises(GiraffeError, match="exit code -9") as failure:
        parallel.raise_what_workers_told(tmp_path, -9)
    assert "log.txt" in failure.value.hint


def test_what_a_worker_reports_arrives():
    pipe, reporter = io.StringIO(), Hooked()
    worker = parallel.EventReporter(pipe)
    worker.info("hello")
    worker.warn("careful")
    pipe.write("noise of a library\n")
    with worker.bar("training", 5, "steps", done=2) as bar:
        bar.advance(1, loss="3.2")
    parallel.replay(io.StringIO(pipe.getvalue()), reporter)
    assert (reporter.lines, reporter.warnings, reporter.done) == (["hello"], ["careful"], 3)


@pytest.mark.parametrize(
    ("windows", "gpus", "expected"), [(1, 0, 1), (4, 2, 2), (6, 4, 3), (1, 8, 1), (8, 8, 8)]
)
def test_every_gpu_that_divides_the_windows_is_used_and_idle_ones_are_named(
    windows, gpus, expected
):
    reporter = SilentReporter()
    config = TrainConfig(windows_per_step=windows)
    assert parallel.choose_processes(config, gpus, reporter) == expected
    assert bool(reporter.warnings) == (expected < gpus)


@pytest.mark.parametrize(("windows", "gpus"), [(3, 0), (2, 1)])
def test_processes_that_cannot_be_had_are_refused(windows, gpus):
    with pytest.raises(UsageError):
        parallel.choose_processes(
            TrainConfig(windows_per_step=windows, processes=2), gpus, SilentReporter()
        )


def test_processes_share_a_gpu_only_when_they_are_told_to():
    settings, reporter = {"windows_per_step": 2, "processes": 2}, SilentReporter()
    with pytest.raises(UsageError, match="2 processes were asked for, 1 GPUs are visible") as told:
        parallel.choose_processes(TrainConfig(**settings), 1, reporter)
    assert "--set train.share_devices=true" in told.value.hint
    shared = TrainConfig(**settings, share_devices=True)
    assert parallel.choose_processes(shared, 1, reporter) == 2
    assert not reporter.warnings
    for gpus in (0, 2):
        assert parallel.choose_processes(shared, gpus, reporter) == 2
        assert f"share_devices has no effect: 2 processes, {gpus} GPUs" in reporter.warnings[-1]
    with pytest.raises(ValueError, match="share_devices needs processes"):
        TrainConfig(share_devices=True)


def test_a_gpu_that_is_shared_is_planned_in_parts():
    machine = named_machine("h100", devices=2)
    settings = {"windows_per_step": 4, "processes": 4}
    alone = TrainConfig(windows_per_step=4, processes=2)
    whole = bytes_per_process(machine, alone)
    assert bytes_per_process(machine, TrainConfig(**settings, share_devices=True)) == whole // 2
    three = TrainConfig(windows_per_step=3, processes=3, share_devices=True)
    assert bytes_per_process(machine, three) == whole // 2, "one of the two GPUs has two"
