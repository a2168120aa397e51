"""`giraffe verify` and `giraffe merge`: exit codes, streams and exact words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_finish import BLIND, config_of
from tiny_runs import TARGET, make_adapter, make_base, merge, table_for

from giraffe_cli.config.building import build
from giraffe_cli.config.files import write_sealed_yaml
from giraffe_cli.pipeline import extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import finish_stage, read_json, write_json, write_sealed
from giraffe_cli.tensor_stream import tensor_digests


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("verified")
    base = make_base(folder / "base")
    adapter = make_adapter(folder / "adapter", base)
    return SimpleNamespace(base=base, adapter=adapter, out=merge(base, adapter, folder / "model"))


@pytest.mark.usefixtures("probed_apart")
def test_a_good_directory_in_words(giraffe, model):
    """The one test here that starts the process a user gets."""
    done = giraffe("verify", model.out)
    assert done.code == 0, done.stderr
    assert "FAILED" not in done.stdout
    assert "attention_factor" in done.stdout
    assert "llama.cpp" in done.stdout
    assert "stock converter writes yarn exactly" in done.stdout
    assert "with stock transformers, in a process of its own" in done.stderr


def test_json_is_one_object_with_the_promised_keys(giraffe, model):
    done = giraffe("verify", model.out, "--adapter", model.adapter, "--base", model.base, "--json")
    assert done.code == 0, done.stderr
    proof = json.loads(done.stdout)
    assert proof["ok"] is True
    assert all(set(check) == {"ok", "found", "expected"} for check in proof["checks"].values())
    assert set(proof["runtimes"]) == {"transformers", "transformers-v4", "vllm", "llama.cpp"}
    assert proof["checks"]["logits_far"]["ok"]


def test_a_defective_directory_exits_3_and_names_the_difference(giraffe, model, tmp_path):
    copy = Path(shutil.copytree(model.out, tmp_path / "copy"))
    config = read_json(copy / "config.json")
    write_json(copy / "config.json", {**config, "max_position_embeddings": 2048})
    done = giraffe("verify", copy)
    assert done.code == 3
    line = next(row for row in done.stdout.splitlines() if row.startswith("max_position"))
    assert line.split() == ["max_position_embeddings", "FAILED", "2048"]
    assert f"error: {copy} is defective: 2 of" in done.stderr
    assert "max_position_embeddings: found 2048; expected 1024" in done.stderr
    assert "files_as_written: found config.json is altered" in done.stderr
    assert "Traceback" not in done.stderr

    shown = giraffe("verify", copy, "--json")
    assert shown.code == 3
    assert json.loads(shown.stdout)["ok"] is False


def test_an_adapter_needs_its_base(giraffe, model):
    done = giraffe("verify", model.out, "--adapter", model.adapter)
    assert done.code == 2
    assert "error: --adapter needs --base" in done.stderr


def test_a_missing_directory_exits_3(giraffe, tmp_path):
    done = giraffe("verify", tmp_path / "nowhere")
    assert done.code == 3
    assert "nowhere is no directory" in done.stderr


# ── giraffe merge ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(model, tmp_path) -> Path:
    """What `giraffe extend` leaves before its merge: run.yaml, rope.json, adapter/."""
    folder = tmp_path / "run"
    shutil.copytree(model.adapter, folder / "adapter")
    finish_stage(folder / "adapter", {"stage": "train"})
    write_run(folder, model.base, steps=3)
    return folder


def write_run(folder: Path, base: Path, steps: int) -> None:
    folder.mkdir(exist_ok=True)
    config = build({"model": str(base), "target_length": TARGET, "train": {"steps": steps}})
    write_sealed_yaml(folder / "run.yaml", config.model_dump(mode="json"))
    write_json(folder / "rope.json", table_for(base).to_json())


def test_merge_writes_the_model_of_a_run(giraffe, run, model):
    done = giraffe("merge", run, "--json")
    assert done.code == 0, done.stderr
    value = json.loads(done.stdout)
    assert value["model_dir"] == str(run / "model")
    assert value["target_length"] == TARGET
    assert value["verify"]["ok"]
    assert tensor_digests(run / "model") == tensor_digests(model.out)


def test_merge_elsewhere_says_what_to_do_next(giraffe, run, tmp_path):
    out = tmp_path / "mine"
    done = giraffe("merge", run, "--out", out)
    assert done.code == 0, done.stderr
    assert f"model: {out}\nwindow: 1024 tokens (yarn)\nverified: " in done.stdout
    assert f"next: giraffe eval {out}" in done.stdout
    assert not (run / "model").exists()


def test_a_run_without_training_merges_nothing(giraffe, model, tmp_path):
    write_run(tmp_path / "zero", model.base, steps=0)
    assert giraffe("merge", tmp_path / "zero").code == 0
    assert tensor_digests(tmp_path / "zero" / "model") == tensor_digests(model.base)


def test_an_unfinished_run_is_refused(giraffe, run):
    (run / "adapter" / "manifest.json").unlink()
    done = giraffe("merge", run)
    assert done.code == 3
    assert "has no finished adapter" in done.stderr
    assert "resumes the training" in done.stderr


def test_a_folder_that_is_no_run_is_refused(giraffe, tmp_path):
    done = giraffe("merge", tmp_path)
    assert done.code == 3
    assert "is no run directory: it has no run.yaml" in done.stderr


def test_a_folder_of_someone_else_is_not_replaced(giraffe, run, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = giraffe("merge", run, "--out", tmp_path)
    assert done.code == 3
    assert "exists and is no merged model" in done.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_mismatch_after_our_own_merge_is_our_failure(giraffe, run, monkeypatch):
    monkeypatch.setattr("giraffe_cli.verify_judge.MAX_LOGIT_DIFFERENCE", -1.0)
    done = giraffe("merge", run)
    assert done.code == 1
    assert "logits_far: found largest difference" in done.stderr


# ── where it may be written ──────────────────────────────────────────────────────────────────


def test_another_runs_model_is_not_replaced(giraffe, run, model, tmp_path):
    """A zero-shot model of the same base: another training, and the same table."""
    write_run(tmp_path / "zero", model.base, steps=0)
    assert giraffe("merge", tmp_path / "zero").code == 0
    theirs = tmp_path / "zero" / "model"
    before = tensor_digests(theirs)
    done = giraffe("merge", run, "--out", theirs)
    assert done.code == 3
    assert f"{theirs} holds another merged model" in done.stderr
    assert tensor_digests(theirs) == before

    # its own is: what was trained may be another now
    assert giraffe("merge", run).code == 0
    shutil.rmtree(run / "adapter")
    shutil.copytree(make_adapter(tmp_path / "again", model.base, std=0.1), run / "adapter")
    finish_stage(run / "adapter", {"stage": "train"})
    assert giraffe("merge", run, "--out", run / "model").code == 0


def test_no_model_is_written_into_a_models_folder(giraffe, run, model):
    done = giraffe("merge", run, "--out", model.out / "within")
    assert done.code == 3
    assert f"{model.out} is the folder of a model: it holds config.json" in done.stderr


def test_a_config_json_of_something_else_is_no_model(giraffe, run, tmp_path):
    (tmp_path / "config.json").write_text('{"port": 8080}')
    assert giraffe("merge", run, "--out", tmp_path / "mine").code == 0


def test_a_link_is_followed(giraffe, run, tmp_path):
    """As where a model was moved to a larger disk."""
    place, link = tmp_path / "large" / "model", run / "model"
    place.mkdir(parents=True)
    link.symlink_to(place)
    assert giraffe("merge", run).code == 0
    (place / "config.json").write_text("{}")
    assert giraffe("merge", run).code == 0  # another time over what is there
    assert link.is_symlink()
    assert read_json(place / "config.json")["max_position_embeddings"] == TARGET
    assert [path.name for path in place.parent.iterdir()] == ["model"]
    assert {path.name for path in run.iterdir()} == {"adapter", "model", "rope.json", "run.yaml"}


# ── the card ─────────────────────────────────────────────────────────────────────────────────


def test_the_card_is_written_where_the_report_is_of_this_training(
    giraffe, tiny_llama, corpus, tmp_path
):
    run_dir, out = tmp_path / "run", tmp_path / "elsewhere"
    extend(config_of(tiny_llama, corpus, steps=2), run_dir, BLIND, SilentReporter())
    card = (run_dir / "model" / "README.md").read_text()
    assert giraffe("merge", run_dir, "--out", out).code == 0
    assert (out / "README.md").read_text() == card

    (out / "README.md").write_text("mine")  # what is there already is not written again
    assert giraffe("merge", run_dir, "--out", out).code == 0
    assert (out / "README.md").read_text() == "mine"

    shutil.rmtree(out)
    trained = read_json(run_dir / "training.json")
    write_sealed(run_dir / "training.json", {**trained, "steps": 3})
    done = giraffe("merge", run_dir, "--out", out)
    assert done.code == 0
    assert f"no model card is written: {run_dir} has no report of this training" in done.stderr
    assert not (out / "README.md").exists()
