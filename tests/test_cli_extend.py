"""`giraffe extend` as a user meets it: exit codes, streams, and text."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import prose

from giraffe_cli.claim import claim
from giraffe_cli.config.building import build


@pytest.fixture
def arguments(tiny_llama, corpus, tmp_path):
    return (
        "extend",
        *("--model", tiny_llama, "--data", corpus, "--target-len", "512", "--window", "128"),
        *("--steps", "1", "--out", tmp_path / "run", "--set", "train.lora.rank=2"),
        *("--set", "pack.hold_out=0.3", "--set", "eval.lengths=[128,512]"),
        *("--set", "eval.knobs={nll: {anchors: 1, targets: 32}, passkey: {depths: 2, trials: 1}}"),
    )


@pytest.mark.usefixtures("probed_apart")
def test_a_seed_that_torch_does_not_take_is_refused(giraffe, tiny_llama):
    done = giraffe("extend", "--model", tiny_llama, "--target-len", "512", "--seed", "-1")
    assert done.code == 2
    assert "--seed -1" in done.stderr


def test_a_run_ends_with_table_path_and_serve_lines(giraffe, arguments, tmp_path):
    done = giraffe(*arguments)
    assert done.code == 0, done.stderr
    assert "vllm serve" in done.stdout
    assert "--max-model-len 512" in done.stdout
    assert "llama-server" in done.stdout
    assert str(tmp_path / "run") in done.stdout
    assert "verified:" in done.stderr
    assert "Traceback" not in done.stderr
    again = giraffe(*arguments, "--json")
    assert again.code == 0
    report = json.loads(again.stdout)
    assert report["target_length"] == 512
    assert report["steps"] == 1
    changed = giraffe(*arguments, "--seed", "3")
    assert changed.code == 3
    assert "holds a run of another config; different: seed" in changed.stderr
    assert "hint:" in changed.stderr


def test_a_run_in_the_folder_of_its_corpus_is_refused(giraffe, tiny_llama, tmp_path):
    """Below it a run is no part of it: the same command goes on."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(12):
        (texts / f"{n}.txt").write_text(prose(n, 20))
    settings = ["--target-len", 512, "--steps", 1, "--no-eval", "--window", 128, "--rope", "yarn"]
    arguments = ["extend", "--model", tiny_llama, "--data", texts, *settings, "--out"]
    refused = giraffe(*arguments, texts)
    assert refused.code == 3
    assert f"{texts} is the folder of the corpus" in refused.stderr
    assert f"hint: --out {texts / 'run'}" in refused.stderr
    for _ in range(2):
        done = giraffe(*arguments, texts / "run")
        assert done.code == 0, done.stderr
    assert "packed holds these windows already" in done.stderr


def test_a_dry_run_shows_the_plan_and_writes_nothing(giraffe, arguments, tmp_path):
    shown = giraffe(*arguments, "--dry-run", "--json")
    assert shown.code == 0, shown.stderr
    plan = json.loads(shown.stdout)
    assert plan["steps"] == 1
    assert plan["tokens_per_step"] == 128
    assert plan["positions"] == "pose"
    assert plan["estimate"]["bytes"]["total"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--target-len", "16q"), 3, "`16q` is not a length in tokens"),
        (("--target-len", "-4"), 3, "is not a length"),
        (("--target-len", "64"), 3, "train.window 128 is longer than target_length 64"),
        (("--target-len", "128"), 3, "already reaches 128 tokens"),
        (("--rope", "yarrn"), 2, "--rope yarrn: no such choice\n\nhint: did you mean `yarn`?"),
        (("--rope", "yarrn", "--dry-run"), 2, "--rope yarrn: no such choice"),
        (("--set", "rope.strategy=yarrn"), 3, "did you mean `yarn`?"),
        (("--set", "train.stepz=4"), 3, "unknown key `train.stepz`\n\nhint: did you mean `steps`?"),
        (("--target-len", "128"), 3, "or pass --allow-native to accept the base as it is"),
        (("--set", "train.steps"), 3, "no `key=value`"),
        (("--set", "train.lora.targets=[q_prj]"), 3, "q_prj"),
        (("--rope", "yarn", "--set", "rope.knobs={beta: 3}"), 3, "`beta` is no knob of `yarn`"),
        (("--set", "rope.knobs={beta: 3}"), 3, "knobs beta need a strategy"),
        (("--gpus", "9"), 2, "visible here"),
        (("--no-such-option",), 2, "No such option"),
        (("--data", "nowhere.jsonl"), 3, "nowhere.jsonl"),
        (("--config", "nowhere.yaml"), 3, "no config file or preset `nowhere.yaml`"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(giraffe, arguments, tmp_path, options, code, text):
    refused = giraffe(*arguments, *options)
    assert refused.code == code, refused.stderr
    assert text in refused.stderr
    assert refused.stdout == ""
    assert "Traceback" not in refused.stderr
    assert not list((tmp_path).rglob("*.safetensors"))


def test_target_length_is_asked_for(giraffe):
    refused = giraffe("extend")
    assert refused.code == 3
    assert "hint: pass --target-len 16k, or write target_length into the config" in refused.stderr


@pytest.mark.parametrize("option", ["--data", "--eval-data"])
def test_a_dry_run_refuses_what_the_run_refuses(giraffe, arguments, tmp_path, option):
    absent = (option, tmp_path / "books.jsonl")
    dry = giraffe(*arguments, *absent, "--dry-run")
    assert (dry.code, dry.stdout) == (3, "")
    assert f"`{tmp_path}/books.jsonl` does not exist" in dry.stderr
    assert not (tmp_path / "run").exists()
    run = giraffe(*arguments, *absent)
    assert run.code == dry.code
    assert run.stderr.splitlines()[-3:] == dry.stderr.splitlines()[-3:]


def test_a_dry_run_without_evaluation_looks_at_none_of_its_texts(giraffe, arguments):
    assert giraffe(*arguments, "--eval-data", "no.jsonl", "--dry-run", "--no-eval").code == 0


def test_a_dry_run_knows_the_folder_of_another_run(giraffe, arguments, tmp_path, tiny_llama):
    config = build({"model": str(tiny_llama), "target_length": 512, "seed": 3})
    claim(config, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    dry = giraffe(*arguments, "--dry-run")
    assert (dry.code, dry.stdout) == (3, "")
    assert "holds a run of another config; different: data, " in dry.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_leaves_a_native_base_as_it_is(giraffe, tiny_llama):
    command = ("extend", "--model", tiny_llama, "--target-len", "128", "--dry-run")
    assert giraffe(*command).code == 3
    done = giraffe(*command, "--allow-native", "--json")
    assert (done.code, json.loads(done.stdout)) == (0, {"native_length": 128})


@pytest.mark.parametrize(
    ("target", "window", "positions"), [("16k", 8192, "pose"), ("2k", 2048, "plain")]
)
def test_the_embedded_default_needs_no_model_and_no_data(giraffe, target, window, positions):
    shown = giraffe("extend", "--target-len", target, "--dry-run", "--json")
    assert shown.code == 0, shown.stderr
    plan = json.loads(shown.stdout)
    assert plan["model"]["source"] == "calf"
    assert plan["native_length"] == 1024
    assert (plan["window"], plan["positions"]) == (window, positions)


@pytest.mark.slow
def test_a_table_written_as_factors_says_nothing_of_keys_that_others_read(
    tiny_llama, corpus, tmp_path
):
    """transformers warns of `long_mscale`, which is there for vLLM; in a process of its own, since
    its logger takes the error stream of the process that first used it."""
    settings = ("--rope", "yarn", "--set", "rope.knobs.factor=24", "--steps", "1", "--no-eval")
    options = ("--model", tiny_llama, "--data", corpus, "--target-len", "512", "--window", "128")
    command = ("extend", *options, *settings)
    done = subprocess.run(
        [sys.executable, "-m", "giraffe_cli", *map(str, command), "--out", tmp_path / "run"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "run" / "rope.json").read_text())
    assert "long_mscale" in table["rope_parameters"]
    assert "Unrecognized keys" not in done.stderr
