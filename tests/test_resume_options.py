"""What a run may be resumed with, and what is refused before anything is packed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import build_tiny_llama
from train_runs import Hooked, build_material, run

from giraffe_cli.claim import check_masks, claim, claimed
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.config.train import TrainConfig, knobs_without_effect
from giraffe_cli.corpus.store import held_out, open_packed
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.store import make_stores
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import finish_stage, make_folder
from giraffe_cli.train.data import WindowStream
from giraffe_cli.train.held_out import held_out_windows
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.loop import early_stop
from giraffe_cli.train.state import TrainState


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def config_of(**train):
    return build({"target_length": 512, "train": train})


@pytest.mark.parametrize(
    "changed",
    [
        {"processes": 2, "windows_per_step": 4},
        {"offload": "disk"},
        {"mlp_tile": 64},
        {"whole_layers": 1},
        {"sequence_parallel": 2},
        {"keep_checkpoints": 5},
        {"control": True},
        {"held_out_every": 3},
    ],
    ids=str,
)
def test_a_run_goes_on_with_knobs_that_change_no_weight(changed, tmp_path):
    first = {"windows_per_step": 4} if "windows_per_step" in changed else {}
    claim(config_of(**first), tmp_path)
    claim(config_of(**changed), tmp_path)
    kept = read_yaml(tmp_path / "run.yaml")["train"]
    assert {name: kept[name] for name in changed} == changed


@pytest.mark.parametrize("there", [None, "packed", "model", "eval", "stages/1-256/adapter"])
def test_the_evaluation_may_change_until_something_is_trained(there, tmp_path):
    """What packing shows, that its texts are all trained on, is mended in the same folder."""
    claim(config_of(), tmp_path)
    if there:
        (tmp_path / there).mkdir(parents=True)
    changed = build({"target_length": 512, "eval": {"data": ["others.jsonl"], "documents": 3}})
    if there in (None, "packed"):
        claim(build({"target_length": 512, "eval": {"documents": 60}}), tmp_path)
        claim(changed, tmp_path)
        assert read_yaml(tmp_path / "run.yaml")["eval"]["data"] == ["others.jsonl"]
    else:
        with pytest.raises(InvalidInput, match=r"different: eval\.data, eval\.documents$"):
            claim(changed, tmp_path)


OF_TEXTS = {"data": ["own.jsonl"], "documents": 2}


@pytest.mark.parametrize(
    ("before", "after", "different"),
    [
        ({}, OF_TEXTS, None),
        ({}, {"tasks": ["nll"]}, None),
        ({}, {"documents": 60}, r"eval\.documents"),
        (OF_TEXTS, {"documents": 2}, r"eval\.data"),
    ],
)
def test_what_tables_were_compared_on_does_not_become_what_is_evaluated(
    before, after, different, tmp_path
):
    """Of packed windows the comparison reads held-out documents that the evaluation leaves."""
    claim(build({"target_length": 512, "eval": before}), tmp_path)
    changed = build({"target_length": 512, "eval": after})
    (tmp_path / "rope_choice.json").touch()
    if different is None:
        claim(changed, tmp_path)
        return
    with pytest.raises(InvalidInput, match=rf"different: {different}$"):
        claim(changed, tmp_path)


def refused_in(folder, is_packed, error=InvalidInput):
    """A run whose input is refused in packing, or once it has packed."""
    with claimed(config_of(), folder):
        (make_folder(folder / "packed") / "half.parquet").touch()
        if is_packed:
            finish_stage(folder / "packed", {})
        raise error("docs.jsonl:1 is cut off")


@pytest.mark.parametrize("error", [InvalidInput, UsageError])
@pytest.mark.parametrize("there", [None, [], ["docs.jsonl", "novel/one.txt"]])
def test_refused_input_takes_with_it_what_the_run_made_and_nothing_else(tmp_path, there, error):
    """`--out .` beside one's own files."""
    for name in there or []:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    if there is not None:
        (tmp_path / "out").mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match="cut off"):
        refused_in(tmp_path / "out", is_packed=False, error=error)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_has_been_packed_stays_when_later_input_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cut off"):
        refused_in(tmp_path / "out", is_packed=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"run.yaml", "packed"}


def test_a_run_goes_on_with_another_budget_for_its_comparison(tmp_path):
    claim(build({"target_length": 512, "rope": {"minutes": 3}}), tmp_path)
    claim(build({"target_length": 512, "rope": {"minutes": 9}}), tmp_path)
    assert read_yaml(tmp_path / "run.yaml")["rope"]["minutes"] == 9
    with pytest.raises(InvalidInput, match=r"different: rope\.strategy$"):
        claim(build({"target_length": 512, "rope": {"strategy": "yarn"}}), tmp_path)


@pytest.mark.parametrize(
    ("first", "changed", "named"),
    [
        ({}, {"steps": 7}, "train.steps"),
        ({"lora": {"dropout": 0.1}}, {"mlp_tile": 64}, "train.mlp_tile"),
        ({"lora": {"dropout": 0.1}}, {"whole_layers": 1}, "train.whole_layers"),
        ({"lora": {"dropout": 0.1}}, {"sequence_parallel": 2}, "train.sequence_parallel"),
        (
            {"held_out_every": 2, "keep": "best"},
            {"held_out_every": 3},
            "train.held_out_every",
        ),
    ],
)
def test_knobs_that_change_weights_are_named_once_something_is_trained(
    first, changed, named, tmp_path
):
    claim(config_of(**first), tmp_path)
    claim(config_of(**{**first, **changed}), tmp_path)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InvalidInput, match=f"different: {named}$"):
        claim(config_of(**first), tmp_path)


def test_windows_are_packed_before_anything_is_trained(tmp_path):
    claim(config_of(window=64), tmp_path)
    with pytest.raises(InvalidInput, match="different: train.window$"):
        claim(config_of(window=32), tmp_path)


@pytest.mark.parametrize(("dropout", "in_attention"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_levers_by_which_masks_are_drawn_are_part_of_what_is_resumed(
    material, dropout, in_attention, tmp_path
):
    """Only where there are masks; and what is not in force is not named, so that folders from
    before there was such a lever go on."""

    checkpoint = dataclasses.replace(material.checkpoint, attention_dropout=in_attention)

    def identity(**levers):
        train = config_of(lora={"dropout": dropout}).train
        job = TrainJob(
            *(checkpoint, material.table, material.packed, train, "plain", 512),
            *("float32", 0, tmp_path),
            levers=Levers(**levers),
        )
        return job.identity("packed")

    first = identity()
    assert first["train"].keys().isdisjoint({"projection_tile", "whole_layers", "head_groups"})
    is_masked = dropout + in_attention > 0
    for levers in ({"projection_tile": 7}, {"whole_layers": 1}):
        assert (identity(**levers) != first) == is_masked
    assert (identity(mlp_tile=7) != first) == (dropout > 0)
    assert (identity(head_groups=2) != first) == (in_attention > 0)
    assert identity(fused=True, offload="disk") == first


def test_a_base_with_dropout_in_attention_goes_on_with_the_same_masks(material, tmp_path):
    masked = dataclasses.replace(material.checkpoint, attention_dropout=0.1)
    claim(config_of(), tmp_path)
    changed = config_of(sequence_parallel=2)
    check_masks(changed, tmp_path, masked)  # nothing is trained yet
    (tmp_path / "adapter").mkdir()
    check_masks(changed, tmp_path, material.checkpoint)
    check_masks(config_of(checkpoint_every=3), tmp_path, masked)
    with pytest.raises(InvalidInput, match=r"different: train\.sequence_parallel$"):
        check_masks(changed, tmp_path, masked)


def test_no_two_windows_draw_the_same_dropout_masks(material):
    rows = open_packed(material.packed)
    stream = WindowStream(rows, make_positions("plain"), 64, 512, 7, 2)
    assert len({stream.build(number).dropout_seed for number in range(200)}) == 200


@pytest.mark.parametrize(
    "mine",
    [
        *("adapter/adapter_model.safetensors", "model/x", "report.html", "verify.json"),
        *("stages/x", "tune/x", "rope_choice.json", "weights.safetensors"),
    ],
)
def test_a_folder_with_files_of_others_is_no_folder_for_a_run(mine, tmp_path):
    """An `--out .` beside an adapter of one's own: it was written over, and a model of one's own
    refused after training."""
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine, and in nobody's way")
    with pytest.raises(InvalidInput, match=f"no run, and has {mine.split('/')[0]}, which a run"):
        claim(config_of(), tmp_path)
    assert not (tmp_path / "run.yaml").exists()
    (tmp_path / mine).unlink()
    claim(config_of(), tmp_path)
    claim(config_of(), tmp_path)


def test_every_free_knob_exists():
    assert knobs_without_effect(TrainConfig()) < set(TrainConfig.model_fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sequence-parallel", 3], "4 attention heads cannot be shared by 3 processes"),
        (["--set", "train.processes=2"], "1 window per step cannot be shared by 2 processes"),
        (["--set", "train.trackers=[tensorbord]"], "unknown tracker `tensorbord`"),
    ],
)
def test_what_cannot_train_is_refused_before_the_corpus_is_packed(
    giraffe, tiny_llama, corpus, tmp_path, options, message
):
    out = tmp_path / "run"
    arguments = ["--model", tiny_llama, "--data", corpus, "--target-len", "256", "--no-eval"]
    refused = giraffe("extend", *arguments, "--out", out, *options)
    assert refused.code in (2, 3)
    assert message in refused.stderr
    assert not out.exists()


# ── measuring on other documents than the evaluation's ───────────────────────────────────────────


def test_evaluated_documents_are_not_measured_on(material):
    rows = open_packed(material.packed)
    stream = WindowStream(rows, make_positions("pose"), 64, 512, 7, 2)
    ranked = sorted(held_out(material.packed), key=lambda d: (-len(d.text), d.source, d.id))
    assert len(ranked) > 3
    windows = held_out_windows(rows, stream, material.checkpoint.path, 2, evaluated=2)
    assert [w.doc_ids[0] for w in windows] == [document.id for document in ranked[2:4]]
    shared = held_out_windows(rows, stream, material.checkpoint.path, 2, evaluated=99)
    assert [w.doc_ids[0] for w in shared] == [document.id for document in ranked[:2]]


def test_choosing_weights_on_evaluated_text_is_said_aloud(material, tmp_path):
    reporter = Hooked()
    settings = {"steps": 2, "held_out_every": 1, "held_out_windows": 2}
    run(material, tmp_path / "plain", reporter, evaluated_documents=99, **settings)
    assert not any("scored on" in line for line in reporter.warnings)
    run(material, tmp_path / "best", reporter, evaluated_documents=99, keep="best", **settings)
    assert any("chosen on text they are scored on" in line for line in reporter.warnings)


def test_a_held_out_loss_that_is_never_a_number_ends_a_run_with_a_sentence():
    config = TrainConfig(steps=9, held_out_every=1, patience=1)
    state = TrainState(step=2)
    state.measured(float("nan"))
    assert state.has_stopped_early(config)
    assert early_stop(state, config) == (
        "stopped early after step 2 of 9: the held-out loss was never a number"
    )


# ── attention that cannot be kept ────────────────────────────────────────────────────────────────


def test_attention_with_dropout_is_recomputed_unless_it_was_asked_for(tmp_path):
    folder = build_tiny_llama(tmp_path / "dropout", attention_dropout=0.2)
    material = build_material(folder, tmp_path)
    reporter = Hooked()
    run(material, tmp_path / "auto", reporter, steps=1)
    assert any("; layers recomputed; " in line for line in reporter.lines)
    assert any("attention is computed again" in line for line in reporter.warnings)
    with pytest.raises(InvalidInput, match="attention_dropout is 0.2") as failure:
        run(material, tmp_path / "asked", steps=1, checkpointing="attention")
    assert "train.checkpointing=full" in failure.value.hint


def test_host_memory_is_no_other_place_on_a_cpu(material, tmp_path):
    with pytest.raises(InvalidInput, match="no effect on a CPU") as failure:
        make_stores(Levers(offload="host"), 1, torch.device("cpu"), tmp_path)
    assert "offload=disk" in failure.value.hint
