"""Measuring on held-out documents while training: what is measured, what stops, what is kept."""

from __future__ import annotations

import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from train_runs import (
    Hooked,
    adapter_bytes,
    build_material,
    checkpoints,
    metrics,
    run,
    state_of,
    timeless,
)

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.store import held_out, open_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.loading import load_model
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import read_json
from giraffe_cli.train.data import WindowStream
from giraffe_cli.train.held_out import held_out_windows
from giraffe_cli.train.run import Run
from giraffe_cli.train.state import TrainState

MEASURED = {"held_out_every": 2, "held_out_windows": 3, "steps": 7}
# So high a rate that the held-out loss falls, then rises for two steps: the best is the 7th of 9.
OVERSHOOTS = {
    **MEASURED,
    "steps": 12,
    "held_out_every": 1,
    "learning_rate": 0.01,
    "schedule": "constant",
}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def best(material, tmp_path_factory):
    """A run that keeps its best step, patience ending it early."""
    run_dir = tmp_path_factory.mktemp("best")
    result = run(material, run_dir, keep="best", patience=2, **OVERSHOOTS)
    return SimpleNamespace(run_dir=run_dir, result=result)


def stream_of(material, positions="pose"):
    rows = open_packed(material.packed)
    return rows, WindowStream(rows, make_positions(positions), 64, 512, 7, 2)


# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def test_windows_are_the_beginnings_of_the_longest_documents_that_are_not_trained_on(material):
    rows, stream = stream_of(material)
    windows = held_out_windows(rows, stream, material.checkpoint.path, 3)
    lengths = {d.id: len(d.text) for d in held_out(material.packed)}
    assert [w.doc_ids[0] for w in windows] == sorted(lengths, key=lambda i: (-lengths[i], i))[:3]
    trained = {name for index in range(len(rows)) for name in rows.row(index).doc_ids}
    assert not trained & {w.doc_ids[0] for w in windows}
    shorter = WindowStream(rows, stream.positions, 5, 512, 7, 2)
    cut = held_out_windows(rows, shorter, material.checkpoint.path, 1)[0]
    assert cut.input_ids.tolist() == windows[0].input_ids[:, :5].tolist()
    assert cut.num_targets == 4


def test_positions_are_drawn_once_for_all_measurements(material):
    rows, stream = stream_of(material)
    twice = [held_out_windows(rows, stream, material.checkpoint.path, 3) for _ in range(2)]
    for one, other in zip(*twice, strict=True):
        assert torch.equal(one.position_ids, other.position_ids)
    assert twice[0][0].position_ids.max() > 64  # PoSE's skips, as in training


def test_the_measured_loss_is_that_of_stock_transformers_under_the_written_adapter(
    material, tmp_path
):
    from peft import PeftModel
    from transformers import AutoTokenizer

    settings = {"steps": 2, "held_out_every": 2, "held_out_windows": 3, "learning_rate": 1e-2}
    result = run(material, tmp_path, positions="plain", **settings)
    base = load_model(
        material.checkpoint.path,
        dtype=torch.float32,
        table=material.table,
        attn_implementation="eager",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 calls what transformers 5.23 deprecates
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(material.checkpoint.path)
    longest = sorted(held_out(material.packed), key=lambda d: (-len(d.text), d.source, d.id))[:3]
    nats, targets = 0.0, 0
    for document in longest:
        ids = torch.tensor([[*tokenizer(document.text).input_ids, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        targets += ids.shape[1] - 1
    assert metrics(tmp_path)[-1]["held_out_nll"] == pytest.approx(nats / targets, rel=1e-5)
    assert result.held_out_nll == metrics(tmp_path)[-1]["held_out_nll"]


def test_measured_every_so_many_steps_and_after_the_last_changing_no_weight(material, tmp_path):
    reporter = Hooked()
    run(material, tmp_path / "with", reporter, **MEASURED)
    run(material, tmp_path / "without", steps=7)
    measured = [m["step"] for m in metrics(tmp_path / "with") if "held_out_nll" in m]
    assert measured == [2, 4, 6, 7]
    assert reporter.fields["held"] == f"{metrics(tmp_path / 'with')[-1]['held_out_nll']:.3f}"
    both = [adapter_bytes(tmp_path / name) for name in ("with", "without")]
    assert both[0]["adapter_model.safetensors"] == both[1]["adapter_model.safetensors"]


def test_nothing_held_out_is_refused_before_training(tiny_llama, tmp_path):
    without = build_material(tiny_llama, tmp_path, hold_out=0)
    with pytest.raises(InvalidInput, match="held out") as failure:
        run(without, tmp_path / "run", **MEASURED)
    assert "--hold-out" in failure.value.hint
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_document_of_one_token_has_nothing_to_predict(material, monkeypatch):
    rows, stream = stream_of(material)
    rows = SimpleNamespace(folder=rows.folder, bos="no", eos="no")  # else a text gains tokens
    documents = [Document("one", "!", "s"), Document("two", "!?", "s")]
    monkeypatch.setattr("giraffe_cli.train.held_out.each_held_out", lambda folder: documents)
    windows = held_out_windows(rows, stream, material.checkpoint.path, 3)
    assert [(w.doc_ids, w.num_targets) for w in windows] == [(("two",), 1)]
    documents.pop()
    with pytest.raises(InvalidInput, match="holds none"):
        held_out_windows(rows, stream, material.checkpoint.path, 3)


def test_fewer_documents_than_asked_for_are_said_aloud(material, tmp_path):
    reporter = Hooked()
    run(material, tmp_path, reporter, steps=1, held_out_every=1, held_out_windows=50)
    assert any("held-out documents" in line for line in reporter.warnings)


# ── patience and the best step ───────────────────────────────────────────────────────────────────


def test_patience_counts_measurements_that_are_no_better():
    state, config = TrainState(), TrainConfig(steps=9, held_out_every=1, patience=2)
    for nll, better, over in (
        (3.0, True, False),
        (3.0, False, False),
        (2.9, True, False),
        (float("nan"), False, False),
        (2.95, False, True),
    ):
        state.step += 1
        assert state.measured(nll) == better
        assert state.is_over(config) == over
    assert (state.best_step, state.best_nll) == (3, 2.9)


def test_the_run_ends_early_with_the_weights_of_its_best_step(best):
    measured = {m["step"]: m["held_out_nll"] for m in metrics(best.run_dir)}
    lowest = min(measured, key=measured.get)
    assert 1 < lowest < 10
    assert max(measured) == lowest + 2 == best.result.steps
    assert best.result.stopped_early
    assert best.result.adapter_step == lowest
    assert best.result.held_out_nll == measured[lowest]
    assert read_json(best.run_dir / "training.json")["adapter_step"] == lowest
    saved = load_file(best.run_dir / "checkpoints" / f"step-{lowest}" / "state.safetensors")
    adapter = load_file(best.run_dir / "adapter" / "adapter_model.safetensors")
    kept = {k.removeprefix("parameter/"): v for k, v in saved.items() if "parameter/" in k}
    assert len(kept) == len(adapter)
    for name, tensor in adapter.items():
        match = [v for k, v in kept.items() if k.replace(".default", "").endswith(name)]
        assert len(match) == 1
        assert torch.equal(match[0], tensor)


def test_the_best_checkpoint_stays_beside_the_newest(material, tmp_path):
    settings = {**OVERSHOOTS, "steps": 9}
    run(material, tmp_path, keep="best", keep_checkpoints=1, checkpoint_every=1, **settings)
    measured = {m["step"]: m["held_out_nll"] for m in metrics(tmp_path)}
    lowest = min(measured, key=measured.get)
    assert lowest < 9
    assert checkpoints(tmp_path) == {f"step-{lowest}", "step-9"}


@pytest.mark.parametrize("crash_at", [1, 6, 7, 8, 9])
def test_a_crash_between_measurement_and_checkpoint_changes_no_byte(
    material, best, tmp_path, crash_at
):
    def crash(step):
        if step == crash_at:
            raise RuntimeError("power cut")

    assert best.result.steps == 9
    with pytest.raises(RuntimeError, match="power cut"):
        run(material, tmp_path, Hooked(crash), keep="best", patience=2, **OVERSHOOTS)
    again = run(material, tmp_path, keep="best", patience=2, **OVERSHOOTS)
    assert adapter_bytes(tmp_path) == adapter_bytes(best.run_dir)
    assert timeless(tmp_path) == timeless(best.run_dir)
    assert again.stopped_early


def test_a_run_that_has_stopped_early_knows_it_when_resumed(material, best, tmp_path, monkeypatch):
    def power_cut(self):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_adapter", power_cut)
        with pytest.raises(RuntimeError, match="power cut"):
            run(material, tmp_path, keep="best", patience=2, **OVERSHOOTS)
    reporter = Hooked()
    result = run(material, tmp_path, reporter, keep="best", patience=2, **OVERSHOOTS)
    assert reporter.done == result.steps == best.result.steps  # no step was taken
    assert result.stopped_early
    assert adapter_bytes(tmp_path) == adapter_bytes(best.run_dir)


def test_a_damaged_best_checkpoint_is_named_and_trained_again_on_request(material, best, tmp_path):
    shutil.copytree(best.run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "adapter")
    lowest = best.result.adapter_step
    tensors = tmp_path / "run" / "checkpoints" / f"step-{lowest}" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert state_of(best.run_dir, best.result.steps)["best_step"] == lowest
    with pytest.raises(InvalidInput, match=f"goes by step {lowest} as the best so far") as caught:
        run(material, tmp_path / "run", keep="best", patience=2, **OVERSHOOTS)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert f"remove {checkpoints} to train again" in caught.value.hint
    shutil.rmtree(checkpoints)
    run(material, tmp_path / "run", keep="best", patience=2, **OVERSHOOTS)
    assert adapter_bytes(tmp_path / "run") == adapter_bytes(best.run_dir)
    assert timeless(tmp_path / "run") == timeless(best.run_dir)


def test_two_processes_measure_what_one_does(material, tmp_path):
    for processes in (1, 2):
        run(material, tmp_path / str(processes), processes=processes, **{**MEASURED, "steps": 2})
    one, two = (metrics(tmp_path / name)[-1]["held_out_nll"] for name in "12")
    assert two == pytest.approx(one, rel=1e-5)  # the weights differ by float32 sums
