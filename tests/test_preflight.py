"""What a run refuses before anything is packed, its dry run refuses in the same words."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys

import pytest

from giraffe_cli import evaluating
from giraffe_cli.config.building import build
from giraffe_cli.errors import InvalidInput, Problems, UsageError
from giraffe_cli.evals.base import tasks
from giraffe_cli.evals.chosen import TEXTS
from giraffe_cli.preflight import preflight
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.nodes import FOLDER as NODES

LOSS = ("eval.tasks=[nll]", "eval.knobs={nll: {anchors: 1, targets: 32}}")
KNOBS = "eval.knobs={nll: {anchors: 1, targets: 32}, passkey: {depths: 2, trials: 1}}"


@pytest.fixture
def command(tiny_llama, corpus, tmp_path):
    """A run that nothing stands in the way of, but for what a test adds."""
    return (
        "extend",
        *("--model", tiny_llama, "--data", corpus, "--target-len", "512", "--window", "128"),
        *("--steps", "3", "--rope", "yarn", "--out", tmp_path / "run"),
        *("--set", "pack.hold_out=0.3", "--set", "eval.lengths=[128,512]", "--set", KNOBS),
    )


@pytest.fixture
def refused(giraffe, command, tmp_path):
    """`refused(code, *options)`: what both say, once it is the same and nothing was left."""

    def call(code, *options):
        before = [*tmp_path.rglob("*")]
        dry = giraffe(*command, *options, "--dry-run")
        assert dry.code == code, dry.stderr
        assert dry.stdout == ""
        run = giraffe(*command, *options)
        assert (run.code, run.stderr) == (dry.code, dry.stderr)
        left = {path for path in tmp_path.rglob("*") if NODES not in path.parts} - {*before}
        assert left <= {tmp_path / "run"}, "where nodes met, they are told there that it ended"
        assert not left or "--nodes" in options
        return dry.stderr

    call.command = command
    return call


def sets(*assignments):
    return [word for text in assignments for word in ("--set", text)]


@pytest.mark.parametrize(
    ("code", "options", "said"),
    [
        (3, sets("train.trackers=[trakio]"), "unknown tracker `trakio`"),
        (3, sets("train.trackers=[swanlab]"), "tracker `swanlab` is not installed"),
        (3, ["--sequence-parallel", "3"], "4 attention heads cannot be shared by 3 processes"),
        (2, sets("train.processes=3"), "window per step cannot be shared by 3 processes"),
        (2, sets("train.processes=3", "train.sequence_parallel=2"), "cannot share windows by 2"),
        (2, ["--nodes", "2", "--node-rank", "0", *sets("train.processes=3",
             "train.windows_per_step=3")], "cannot be spread over 2 nodes"),
        (2, ["--nodes", "2", "--node-rank", "2"], "node 2 of 2"),
        (2, ["--node-rank", "1"], "--node-rank and --rendezvous are of a run on several"),
        (3, sets("train.quantize_base=nf4"), "needs bitsandbytes, which is not installed"),
        (3, sets("train.optimizer=adamw8bit", "train.steps=0"), "needs bitsandbytes"),
        (3, sets("train.lora.targets=[q_prj, v_proj]"), "`q_prj` matches no linear layer"),
        (3, sets("train.positions=posse"), "did you mean `pose`?"),
        (3, ["--target-len", "128"], "already reaches 128 tokens"),
        (3, ["--model", "nowhere"], "nowhere"),
        (3, ["--data", "nowhere.jsonl"], "`nowhere.jsonl` does not exist"),
        (2, ["--data", "calf", "--data", "calf"], "`calf` is named twice"),
        (3, ["--out", "{tmp}/bad.jsonl"], "bad.jsonl is not a directory"),
        (3, ["--out", "{tmp}/bad.jsonl/run"], "bad.jsonl is not a directory"),
        (3, ["--eval-data", "nowhere.jsonl"], "`nowhere.jsonl` does not exist"),
        (3, ["--eval-data", "{tmp}/bad.jsonl"], "bad.jsonl:1"),
        (3, ["--eval-data", "{tmp}/blank.jsonl"], "--eval-data: no text in"),
        (3, ["--eval-data", "{tmp}/short.jsonl"], "documents has 512 tokens"),
        (3, sets("eval.haystack=[nowhere.txt]"), "`nowhere.txt` does not"),
        (3, sets("eval.other_data=[nowhere.txt]", "eval.tasks=[short]"), "`nowhere.txt` does not"),
        (3, sets("eval.haystack=[{tmp}/short.jsonl]", *LOSS), "--haystack has no effect"),
        (3, sets("eval.evaluator=nowhere", "eval.tasks=[longppl]"), "nowhere"),
        (3, sets("eval.evaluator={model}"), "an evaluator has no effect"),
        (3, sets("eval.tasks=[nll, passkeys]"), "unknown evaluation task `passkeys`"),
        (3, sets("eval.knobs.passkey.trails=2"), "`trails` is no knob of `passkey`"),
        (3, sets("eval.knobs.passkey.trials=0"), "trials is 0, must be 1 or more"),
        (3, sets("eval.files={hellaswag: rows.jsonl}"), "no evaluated task reads it"),
        (3, sets("eval.tasks=[lambada]", "eval.knobs={}", "eval.files={lambada: nowhere.jsonl}"),
         "nowhere.jsonl"),
        (3, sets("eval.gates=['passkey@256>=0.9']"), "is not scored on `passkey` at 256"),
        (3, sets("eval.gates=['kv@512>=0.9']"), "no measure `kv` is evaluated"),
        (3, sets("eval.gates=['control:nll@128<3']"), "no model `control` is evaluated"),
        (3, sets("eval.threshold=0.5", *LOSS), "threshold 0.5 has no effect"),
        (3, sets("eval.chat=true"), "has a chat template"),
        (3, sets("eval.harness=[no_such_task]"), "lm"),
        (3, sets("eval.knobs.nll.targets=512"), "leaves no context before 512 targets"),
        (3, sets("pack.hold_out=0"), "no held-out documents to evaluate on"),
        (3, ["--control", *sets("eval.lengths=[512]")], "the control run is scored up to 128"),
    ],
)  # fmt: skip
def test_run_and_dry_run_refuse_the_same(
    refused, tmp_path, tiny_llama, monkeypatch, code, options, said
):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "text": "cut off')
    (tmp_path / "blank.jsonl").write_text('{"id": "a", "text": "  "}\n')
    (tmp_path / "short.jsonl").write_text(json.dumps({"id": "a", "text": "a short text"}) + "\n")
    places = {"{tmp}": str(tmp_path), "{model}": str(tiny_llama)}
    for place, path in places.items():
        options = [option.replace(place, path) for option in options]
    assert said in refused(code, *options)


def test_a_base_that_changed_under_its_run_is_refused_by_both(
    giraffe, refused, tiny_llama, tmp_path
):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    options = ("--model", base, "--steps", "1", "--no-eval")
    done = giraffe(*refused.command, *options)
    assert done.code == 0, done.stderr
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "note": "another file"}))
    assert f"is not what {tmp_path}/run was trained on" in refused(3, *options)


def test_all_problems_are_told_at_once(refused):
    options = sets("train.trackers=[trakio]", "eval.tasks=[nll, passkeys]", "train.processes=3")
    said = refused(3, "--data", "nowhere.jsonl", "--model", "nobody", *options)
    assert said.startswith("error: 5 problems\n  - ")
    for part in ("nobody", "trakio", "shared by 3 processes", "nowhere.jsonl", "passkeys"):
        assert part in said
    assert "    hint: did you mean `passkey`?" in said


def test_gates_are_checked_together(refused):
    said = refused(3, *sets("eval.gates=['kv@512>=0.9', 'passkey@256>=0.9', 'nll@512<9']"))
    assert "2 problems" in said
    assert "nll@512<9" not in said


def test_what_is_asked_of_long_documents_is_not_refused_before_they_are_known(
    tiny_llama, corpus, tmp_path
):
    """Every task that needs no file, knobs of its own, and gates on what held-out text gives."""
    names = [name for name, kind in tasks().items() if not set(kind.needs) - TEXTS]
    targets = {name: {"targets": 16} for name in ("nll", "short", "longppl")}
    knobs = {**targets, "sliding": {"stride": 32}, "positions": {"bucket": 64}}
    gates = ["nll@4k-nll@128<0", "nll@4k-nll.shuffled@4k<0", "short_context.kl_mean<1",
             "effective_length.nll>=4k", "longppl@4k<9", "sliding@4k<9"]  # fmt: skip
    asked = {"tasks": names, "lengths": [128, 4096], "knobs": knobs, "gates": gates}
    values = {"model": str(tiny_llama), "data": [str(corpus)], "target_length": 4096}
    config = build({**values, "rope": {"strategy": "yarn"}, "eval": asked})
    start = preflight(config, tmp_path / "run", tmp_path / "work", SilentReporter())
    assert start.evaluation.documents is None
    assert [stage.table.target_length for stage in start.stages] == [4096]
    assert list(tmp_path.iterdir()) == []


def refuse(kind, message, hint=None):
    raise kind(message, hint)


def test_one_problem_is_raised_as_it_was_and_the_same_one_once():
    problems = Problems()
    assert problems.note(len, "abc") == 3
    problems.settle()
    for _ in range(2):
        assert problems.note(refuse, UsageError, "too many", "fewer") is None
    with pytest.raises(UsageError, match="^too many$") as caught:
        problems.settle()
    assert caught.value.hint == "fewer"


def test_several_are_usage_errors_only_where_all_are():
    problems = Problems()
    problems.note(refuse, UsageError, "first")
    problems.note(refuse, UsageError, "second:\n  - a part", "mend it")
    with pytest.raises(UsageError) as caught:
        problems.settle()
    assert caught.value.message == (
        "2 problems\n  - first\n    hint: the command with --help shows what goes together\n"
        "  - second:\n      - a part\n    hint: mend it"
    )
    problems.note(refuse, InvalidInput, "third")
    with pytest.raises(InvalidInput, match="^3 problems"):
        problems.settle()
    with pytest.raises(ZeroDivisionError):
        problems.note(lambda: 1 / 0)


def test_what_is_made_up_for_a_long_target_is_not_encoded_as_one_text(
    giraffe, command, monkeypatch
):
    """The document that stands for held-out ones, and filler: at 16m they took 60 GB to encode."""
    gathered, encoded = evaluating.gather_material, []

    def noted(*values):
        material = gathered(*values)

        def encode(text):
            encoded.append(len(text))
            return material.encode(text)

        return dataclasses.replace(material, encode=encode)

    monkeypatch.setattr(evaluating, "gather_material", noted)
    options = ("--target-len", "512k", "--set", "eval.lengths=[128,512k]", "--set")
    found = giraffe(*command, *options, "eval.tasks=[nll,passkey,niah-single-2]", "--dry-run")
    assert found.code == 0, found.stderr
    assert 0 < max(encoded) < evaluating.LONG_TEXT
