"""`--rope auto`: what is compared inside a run, on what text, and what is recorded."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from conftest import prose

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.corpus.holdout import choose_held_out, is_held_out
from giraffe_cli.errors import InvalidInput
from giraffe_cli.pipeline import Options, extend
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import read_json
from giraffe_cli.train import parallel
from giraffe_cli.tune.choice import (
    UNTRAINED_MINUTES,
    budget_seconds,
    choose_rope,
    compared_stage,
    training_documents,
)


def config_of(tiny_llama, corpus, **changes):
    values = {
        "model": str(tiny_llama),
        "data": [str(corpus)],
        "target_length": 512,
        "train": {"steps": 2, "window": 128, "warmup_steps": 0, "lora": {"rank": 2}},
        "eval": {"tasks": ["nll"], "documents": 2, "knobs": {"nll": {"targets": 16}}},
    }
    return build({**values, **changes})


def extend_arguments(tiny_llama, corpus, out):
    return (
        "extend", "--model", tiny_llama, "--data", corpus, "--target-len", "512", "--steps", "0",
        "--set", "eval.tasks=[nll]", "--set", "eval.knobs={nll: {targets: 16}}", "--out", out,
    )  # fmt: skip


def test_the_default_compares_and_takes_the_best(giraffe, tiny_llama, corpus, tmp_path):
    run = tmp_path / "run"
    done = giraffe(*extend_arguments(tiny_llama, corpus, run), "--json")
    assert done.code == 0, done.stderr
    choice = read_json(run / "rope_choice.json")
    best = choice["settings"][0]
    assert len(choice["settings"]) > 15
    assert choice["chosen"] == {key: best[key] for key in ("label", "strategy", "knobs")}
    table = read_json(run / "rope.json")
    assert table["strategy"] == best["strategy"]
    report = json.loads(done.stdout)
    assert report["strategy"] == best["strategy"]
    assert report["rope_choice"] == choice
    assert report["verify"]["ok"]
    assert read_yaml(run / "run.yaml")["rope"]["strategy"] == "auto"
    assert read_json(run / "plan.json")["strategy"] == best["strategy"]
    assert "rope auto: comparing" in done.stderr
    assert f"rope: {best['label']}, the lowest loss at 512" in done.stderr

    again = giraffe(*extend_arguments(tiny_llama, corpus, run))
    assert again.code == 0
    assert "comparing" not in again.stderr


def test_what_is_compared_on_is_not_what_is_evaluated(giraffe, tiny_llama, corpus, tmp_path):
    config = config_of(tiny_llama, corpus, pack={"hold_out": 0.4})
    compared = {document.id for document in training_documents(config)}
    assert len(compared) == 8
    assert not any(is_held_out(identity, 0.4) for identity in compared)


def test_the_one_document_that_a_small_corpus_holds_out_is_not_compared_on(tiny_llama, tmp_path):
    small = tmp_path / "small.jsonl"
    ids = ["a", "b", "c"]
    assert not any(is_held_out(identity, 0.01) for identity in ids)
    small.write_text("".join(json.dumps({"id": i, "text": prose(1, 160)}) + "\n" for i in ids))
    compared = training_documents(config_of(tiny_llama, small, pack={"hold_out": 0.01}))
    (kept_out,) = choose_held_out(ids, 0.01)
    assert {document.id for document in compared} == {*ids} - {kept_out}


def test_packed_windows_leave_the_documents_of_the_evaluation_alone(
    giraffe, tiny_llama, corpus, tmp_path
):
    packed = tmp_path / "packed"
    done = giraffe("pack-data", corpus, "--tokenizer", tiny_llama, "--window", "128",
                   "--hold-out", "0.6", "--out", packed)  # fmt: skip
    assert done.code == 0, done.stderr
    config = config_of(tiny_llama, packed)
    others = [document.id for document in training_documents(config)]
    own_text = {"tasks": ["nll"], "documents": 2, "data": [str(corpus)]}
    free = config_of(tiny_llama, packed, eval=own_text)
    evaluated = [document.id for document in training_documents(free)]
    assert len(others) >= 2
    assert evaluated[2 : 2 + len(others)] == others[: len(evaluated) - 2]


def test_short_documents_leave_the_rule_of_thumb_and_say_so(tiny_llama, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"id": "a", "text": prose(1, 8)}) + "\n")
    reporter = SilentReporter()
    config = config_of(tiny_llama, short, pack={"hold_out": 0})
    checkpoint = inspect(str(tiny_llama), tmp_path)
    choice = choose_rope(config, checkpoint, tmp_path, 60.0, reporter)
    assert choice["chosen"] == {"label": "yarn", "strategy": "yarn", "knobs": {}}
    assert choice["settings"] == []
    assert "none of 1 documents has 512 tokens" in choice["reason"]
    assert choice["reason"].endswith("yarn by rule of thumb")
    assert reporter.lines[-1] == f"rope: yarn, {choice['reason']}"


def test_too_little_time_leaves_the_rule_of_thumb(tiny_llama, corpus, tmp_path):
    checkpoint = inspect(str(tiny_llama), tmp_path)
    choice = choose_rope(
        config_of(tiny_llama, corpus), checkpoint, tmp_path, 1e-9, SilentReporter()
    )
    assert choice["chosen"]["strategy"] == "yarn"
    assert "were too little to compare two" in choice["reason"]


def test_too_little_memory_leaves_the_rule_of_thumb(tiny_llama, corpus, tmp_path, monkeypatch):
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("giraffe_cli.tune.choice.compare", exhausted)
    reporter = SilentReporter()
    checkpoint = inspect(str(tiny_llama), tmp_path)
    choice = choose_rope(config_of(tiny_llama, corpus), checkpoint, tmp_path, 60.0, reporter)
    assert choice["reason"] == "512 tokens do not fit into memory at once; yarn by rule of thumb"
    assert reporter.warnings == ["rope auto: 512 tokens do not fit into memory at once"]


def test_what_a_comparison_held_is_handed_back_before_workers_start(
    tiny_llama, corpus, tmp_path, monkeypatch
):
    """Its error holds what it worked on while it is handled: all of the card, that workers need."""
    held, alive = [], []

    def exhausted(*arguments, **options):
        weights = torch.ones(8)
        held.append(weakref.ref(weights))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("giraffe_cli.tune.choice.compare", exhausted)
    checkpoint = inspect(str(tiny_llama), tmp_path)
    choose_rope(config_of(tiny_llama, corpus), checkpoint, tmp_path, 60.0, SilentReporter())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(held[0]() is not None))
    monkeypatch.setattr(parallel, "run_launcher", lambda *arguments, **options: len(alive) - 1)
    parallel.launch({}, tmp_path, 2, SilentReporter())
    assert alive == [False]


def test_the_choice_of_an_earlier_call_stands(tiny_llama, corpus, tmp_path):
    kept = {"chosen": {"label": "x", "strategy": "linear", "knobs": {}}, "reason": "kept"}
    (tmp_path / "rope_choice.json").write_text(json.dumps(kept))
    checkpoint = inspect(str(tiny_llama), tmp_path)
    assert choose_rope(
        config_of(tiny_llama, corpus), checkpoint, tmp_path, 1.0, SilentReporter()
    ) == kept  # fmt: skip


def test_one_that_nothing_was_compared_for_is_made_again_until_something_is_trained(
    tiny_llama, corpus, tmp_path
):
    config, checkpoint = config_of(tiny_llama, corpus), inspect(str(tiny_llama), tmp_path)
    reporter = SilentReporter()
    thumb = choose_rope(config, checkpoint, tmp_path, 0.0, reporter, is_settled=False)
    assert thumb["settings"] == []
    kept = choose_rope(config, checkpoint, tmp_path, 60.0, reporter, is_settled=True)
    assert kept == thumb
    assert "taken by rule of thumb before" in reporter.lines[-1]
    compared = choose_rope(config, checkpoint, tmp_path, 60.0, reporter, is_settled=False)
    assert len(compared["settings"]) > 1
    again = choose_rope(config, checkpoint, tmp_path, 60.0, reporter, is_settled=False)
    assert again == compared


def test_tables_are_compared_for_the_last_stage_that_leaves_them_open(tiny_llama, corpus):
    """At its target and on its text, not those of a stage that names its own table."""
    own = corpus.parent / "own.jsonl"
    own.write_text(json.dumps({"id": "own", "text": prose(7, 300)}) + "\n")
    stages = [
        {"target_length": 256, "data": [str(own)]},
        {"target_length": 512, "strategy": "linear"},
    ]
    stage = compared_stage(config_of(tiny_llama, corpus, stages=stages))
    assert (stage.target_length, stage.data) == (256, [str(own)])
    assert {document.id for document in training_documents(stage)} <= {"own"}


def test_the_budget_is_a_tenth_of_the_training(tiny_llama, corpus):
    config = config_of(tiny_llama, corpus)
    assert budget_seconds(config, 600.0) == pytest.approx(60.0)
    own = config_of(tiny_llama, corpus, rope={"minutes": 3})
    assert budget_seconds(own, 600.0) == 180.0
    untrained = config_of(tiny_llama, corpus, train={"steps": 0})
    assert budget_seconds(untrained, 0.0) == 60 * UNTRAINED_MINUTES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": {"knobs": {"beta_fast": 16}}}, "knobs beta_fast need a strategy"),
        ({"rope": {"strategy": "yarn", "minutes": 3}}, "minutes has no effect on strategy yarn"),
        (
            {"stages": [{"target_length": 512, "strategy": "auto"}]},
            "auto is chosen once for the run",
        ),
    ],
)
def test_refuses_what_would_have_no_effect(tiny_llama, corpus, changes, message):
    with pytest.raises(InvalidInput, match=message):
        config_of(tiny_llama, corpus, **changes)


def test_factors_of_a_file_are_written_into_the_run(giraffe, tiny_llama, corpus, tmp_path):
    file = tmp_path / "factors.json"
    divisors = [1.0, 1.1, 1.3, 2.0, 3.0, 4.0, 4.0, 4.0]
    file.write_text(json.dumps({"long_factor": divisors, "attention_factor": 1.125}))
    run = tmp_path / "run"
    done = giraffe(*extend_arguments(tiny_llama, corpus, run), "--factors", file, "--no-eval")
    assert done.code == 0, done.stderr
    written = read_yaml(run / "run.yaml")["rope"]
    assert written["strategy"] == "longrope"
    assert written["knobs"] == {"factors": divisors, "attention": 1.125}
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["rope_scaling"]["long_factor"] == pytest.approx(divisors)
    refused = giraffe(*extend_arguments(tiny_llama, corpus, tmp_path / "r2"), "--factors", file,
                      "--rope", "yarn")  # fmt: skip
    assert refused.code == 3
    assert "is no knob of `yarn`" in refused.stderr


def test_one_choice_serves_every_stage_and_the_control_stays_unscaled(tiny_llama, corpus, tmp_path):
    run = tmp_path / "run"
    train = {"steps": 1, "window": 128, "warmup_steps": 0, "lora": {"rank": 2}, "control": True}
    config = config_of(tiny_llama, corpus, stages=[256, 512], train=train, rope={"minutes": 1})
    report = extend(config, run, Options(evaluate=False), SilentReporter())
    chosen = read_json(run / "rope_choice.json")["chosen"]["strategy"]
    first = read_json(run / "stages" / "1-256" / "rope.json")
    last = read_json(run / "rope.json")
    assert first["strategy"] == last["strategy"] == report["strategy"] == chosen
    assert (first["target_length"], last["target_length"]) == (256, 512)
    assert [stage["strategy"] for stage in report["stages"]] == [chosen, chosen]
    control = json.loads((run / "control" / "model" / "config.json").read_text())
    assert control["rope_parameters"]["rope_type"] == "default"
    assert control["max_position_embeddings"] == 128
