"""What was trained stays where it is when something beside it changed, and the run says what."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import build_tiny_llama, prose
from safetensors.torch import load_file, save_file
from train_runs import SETTINGS, Hooked, adapter_bytes, build_material, checkpoints, run

from giraffe_cli.config.building import build
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import GiraffeError, Interrupted, InvalidInput, UsageError
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.train import step
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.loop import train
from giraffe_cli.train.patience import check_patience


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def job_of(material, run_dir, **train):
    config = TrainConfig.model_validate({**SETTINGS, **train})
    return TrainJob(
        material.checkpoint, material.table, material.packed, config, "pose", 512, "float32", 7,
        run_dir,
    )  # fmt: skip


def test_a_run_of_an_earlier_version_is_still_itself(material, tmp_path):
    """A knob that is new is named where it is set. What is listed here was written into folders
    that stand: with a name more, the same command would not know its own steps."""
    train = job_of(material, tmp_path).identity("windows")["train"]
    assert set(train) == {
        *("across_documents", "clip_norm", "decay_steps", "learning_rate", "lora", "method"),
        *("mlp_tile", "optimizer", "position_knobs", "positions", "quantize_base", "schedule"),
        *("keep", "patience", "sequence_parallel", "sequence_parallel_by"),
        *("steps", "warmup_steps", "weight_decay", "window", "windows_per_step"),
    }
    assert set(train["lora"]) == {
        *("alpha", "also_train", "dropout", "init_lora_weights", "rank", "targets", "use_dora"),
        "use_rslora",
    }
    changed = {"lora": {"b_rate": 4, "also_train": ["embeddings"]}, "embeddings_rate": 0.5}
    train = job_of(material, tmp_path, **changed).identity("windows")["train"]
    assert (train["lora"]["b_rate"], train["embeddings_rate"]) == (4, 0.5)


@pytest.fixture
def stopped(material, tmp_path):
    """After three steps of five; a copy of its windows is its own to change."""
    packed = shutil.copytree(material.packed, tmp_path / "packed")
    own = SimpleNamespace(**{**vars(material), "packed": packed})
    with pytest.raises(Interrupted):
        run(own, tmp_path / "run", Hooked(lambda n: n == 3 and signal.raise_signal(signal.SIGTERM)))
    return own, tmp_path / "run"


def pack_again(material, tmp_path):
    made = build_material(material.checkpoint.path, tmp_path, hold_out=0.3)
    shutil.rmtree(material.packed)
    shutil.copytree(made.packed, material.packed)


def test_windows_that_were_packed_anew_are_refused_and_no_step_is_lost(stopped, tmp_path):
    material, run_dir = stopped
    before = checkpoints(run_dir)
    (tmp_path / "again").mkdir()
    pack_again(material, tmp_path / "again")
    with pytest.raises(InvalidInput, match="different: the packed windows") as caught:
        run(material, run_dir)
    assert caught.value.hint == "put it back as it was, or choose another --out"
    assert checkpoints(run_dir) == before == {"step-2", "step-3"}


def test_a_finished_adapter_is_not_trained_again_on_other_windows(material, tmp_path):
    packed = shutil.copytree(material.packed, tmp_path / "packed")
    own = SimpleNamespace(**{**vars(material), "packed": packed})
    run(own, tmp_path / "run")
    before = adapter_bytes(tmp_path / "run")
    (tmp_path / "again").mkdir()
    pack_again(own, tmp_path / "again")
    with pytest.raises(InvalidInput, match="was trained on other inputs"):
        run(own, tmp_path / "run")
    assert adapter_bytes(tmp_path / "run") == before


def test_steps_of_another_training_are_refused_by_the_knobs_that_differ(stopped):
    material, run_dir = stopped
    with pytest.raises(InvalidInput, match=r"different: train\.clip_norm, train\.lora"):
        run(material, run_dir, clip_norm=0.5, lora={"rank": 3, "dropout": 0.1})
    with pytest.raises(InvalidInput, match="different: learning rates"):
        run(material, run_dir, learning_rate=1e-3)
    assert checkpoints(run_dir) == {"step-2", "step-3"}
    run(material, run_dir)


def test_to_end_at_checkpoints_that_are_all_damaged_removes_none(stopped):
    material, run_dir = stopped
    for path in (run_dir / "checkpoints").glob("step-*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    job = dataclasses.replace(job_of(material, run_dir), ends_now=True)
    with pytest.raises(InvalidInput, match="there is nothing to end at"):
        train(job, Hooked())
    assert checkpoints(run_dir) == {"step-2", "step-3"}


@pytest.fixture
def broken(tmp_path):
    """A base with a row of its embeddings, of a token that every text has, that is no number."""
    folder = build_tiny_llama(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    in_every_text = load_tokenizer(folder)(prose(1, 1)).input_ids[3]
    weights["model.embed_tokens.weight"][in_every_text] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_base_that_holds_no_numbers_is_named_at_the_first_step(broken, tmp_path, method):
    (tmp_path / "made").mkdir()
    material = build_material(broken, tmp_path / "made")
    changes = {"method": "full", "lora": {}} if method == "full" else {}
    with pytest.raises(InvalidInput, match="embed_tokens.weight of the base holds NaN") as caught:
        run(material, tmp_path / "run", **changes)
    assert caught.value.hint == "download or save the base again"


def test_bad_documents_are_no_dead_end(material, tmp_path, monkeypatch):
    """What the hint names goes past them in the same folder."""
    clip = step.clip
    bad = iter([False, False, True, True, False, False, False])

    def spoiled(*arguments):
        return clip(*arguments) * (float("nan") if next(bad) else 1)

    monkeypatch.setattr(step, "clip", spoiled)
    with pytest.raises(GiraffeError, match="2 steps in a row") as caught:
        run(material, tmp_path, max_bad_steps=1)
    assert "--set train.max_bad_steps=2, or more" in caught.value.hint
    assert "with another --out" in caught.value.hint
    bad = iter([True, True, False])
    assert run(material, tmp_path, max_bad_steps=2).bad_steps == 2


def test_the_head_and_peft_s_word_for_every_layer_are_answered(giraffe, tiny_llama, corpus):
    asked = ("extend", "--model", tiny_llama, "--data", corpus, "--target-len", "512", "--dry-run")
    for target, told in (
        ("lm_head", "`lm_head` takes no adapter: the loss multiplies by it in chunks"),
        ("all-linear", "leave train.lora.targets out, which takes them all"),
    ):
        done = giraffe(*asked, "--set", f"train.lora.targets=[{target}]")
        assert done.code == 3
        assert told in done.stderr


def test_patience_that_could_never_end_a_training_is_refused():
    """Measured after 4, 8 and, as the last, 10: a second that is no lower than the first is the
    first to say so."""
    measured = {"held_out_every": 4, "patience": 2}
    with pytest.raises(UsageError, match="patience: 2 never ends a training of 10 steps that is"):
        check_patience(TrainConfig(steps=10, **measured))
    check_patience(TrainConfig(steps=13, **measured))
    check_patience(TrainConfig(steps=0, **measured))


def test_patience_is_asked_of_each_stage_s_own_steps(giraffe, tiny_llama, corpus):
    asked = ("extend", "--model", tiny_llama, "--data", corpus, "--target-len", "512", "--dry-run")
    sets = ("--set", "train.held_out_every=50", "--set", "train.patience=3", "--window", "64")
    stages = ("--set", "stages=[{target_length: 256, steps: 1000}, {target_length: 512, steps: 9}]")
    done = giraffe(*asked, *sets, *stages)
    assert done.code == 2
    assert done.stderr.count("never ends a training of") == 1
    assert "of 9 steps that is measured 0 times" in " ".join(done.stderr.split())


def test_position_knobs_are_a_stages_own():
    values = {
        **{"model": "x", "rope": {"strategy": "yarn"}, "target_length": 512},
        "train": {"window": 256, "position_knobs": {"chunks": 3}},
    }
    full, skipping = build({**values, "stages": [256, 512]}).stage_configs()
    assert (full.positions, full.train.position_knobs) == ("plain", {})
    assert (skipping.positions, skipping.train.position_knobs) == ("pose", {"chunks": 3})
    own = {"target_length": 512, "position_knobs": {"chunks": 4}}
    assert build({**values, "stages": [256, own]}).stage_configs()[1].train.position_knobs == {
        "chunks": 4
    }
    named = {"target_length": 512, "positions": "randomised"}
    assert build({**values, "stages": [256, named]}).stage_configs()[1].train.position_knobs == {}
    assert json.loads(build({**values, "stages": [256, own]}).model_dump_json())["stages"][1]


def test_a_best_that_is_gone_is_named_and_no_step_is_lost(material, tmp_path):
    """By a checkpoint whose file is damaged, and where an earlier version removed it."""
    changes = {"keep": "best", "held_out_every": 2, "checkpoint_every": 1, "learning_rate": 0.05}
    stops = Hooked(lambda n: n == 4 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(material, tmp_path, stops, steps=9, **changes)
    kept = checkpoints(tmp_path)
    facts = json.loads((tmp_path / "checkpoints" / "step-4" / "state.json").read_text())
    best = tmp_path / "checkpoints" / f"step-{facts['best_step']}"
    with (best / "state.safetensors").open("ab") as handle:
        handle.write(b"?")
    if best.name == "step-4":
        shutil.rmtree(best)
        kept -= {best.name}
    with pytest.raises(InvalidInput, match="as the best so far, whose checkpoint is missing or"):
        run(material, tmp_path, steps=9, **changes)
    assert checkpoints(tmp_path) == kept


def test_pissa_names_a_base_that_holds_no_numbers(broken, tmp_path):
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "made").mkdir()
    material = build_material(broken, tmp_path / "made")
    with pytest.raises(InvalidInput, match="of the base holds NaN or infinities"):
        run(material, tmp_path / "run", lora={"rank": 2, "init_lora_weights": "pissa"})


def test_a_stage_that_names_the_run_s_own_scheme_keeps_its_knobs():
    values = {
        **{"model": "x", "rope": {"strategy": "yarn"}, "target_length": 512},
        "train": {"window": 128, "positions": "pose", "position_knobs": {"chunks": 3}},
        "stages": [{"target_length": 256, "positions": "pose"}, 512],
    }
    assert [one.train.position_knobs for one in build(values).stage_configs()] == [
        {"chunks": 3}
    ] * 2
