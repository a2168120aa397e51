"""`giraffe init`: the file explains itself, loads, plans, and never replaces another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import build_tiny_llama

from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_yaml
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.plan.estimate import assumed_pace
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.plan.shapes import named_shape
from giraffe_cli.plan.starting import starting_point


def written(giraffe, out: Path, *arguments: object) -> str:
    result = giraffe("init", *arguments, "--out", out, "--json")
    assert result.code == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["path"] == str(out)
    assert build(read_yaml(out)) == build(shown["config"])
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny_arguments(tiny_llama, corpus):
    return ("--model", tiny_llama, "--data", corpus, "--target-len", "512")


def test_the_file_plans_and_says_how(giraffe, tiny_arguments, tmp_path, tiny_llama):
    out = tmp_path / "my giraffe.yaml"
    text = written(giraffe, out, *tiny_arguments)
    assert f"# {tiny_llama} (0M parameters) from 128 to 512 tokens," in text
    assert f"giraffe extend --config '{out}' --dry-run" in text
    plan = giraffe("extend", "--config", out, "--dry-run", "--json")
    assert plan.code == 0, plan.stderr
    found = json.loads(plan.stdout)
    assert (found["native_length"], found["target_length"], found["steps"]) == (128, 512, 60)


def test_every_documentation_in_it_is_that_of_the_config(giraffe, tiny_arguments, tmp_path):
    text = " ".join(written(giraffe, tmp_path / "c.yaml", *tiny_arguments).split()).replace(
        "# ", ""
    )
    for section, names in (
        (ExtendConfig, ("model", "target_length")),
        (PackConfig, ("hold_out", "short_mix")),
        (TrainConfig, ("window", "windows_per_step", "checkpointing", "control")),
    ):
        for name in names:
            assert " ".join(section.model_fields[name].description.split()) in text, name


def test_knobs_at_their_default_are_real_once_the_mark_is_deleted(
    giraffe, tiny_arguments, tmp_path
):
    text = written(giraffe, tmp_path / "c.yaml", *tiny_arguments)
    switched_on = re.sub(r"^( *)#(?=\w+:)", r"\1", text, flags=re.M)
    assert switched_on.count("\n") == text.count("\n")
    assert switched_on != text
    assert build(yaml.safe_load(switched_on)) == build(yaml.safe_load(text))


def test_every_knob_is_shown_or_named(giraffe, tiny_arguments, tmp_path):
    text = written(giraffe, tmp_path / "c.yaml", *tiny_arguments)
    for name in (*TrainConfig.model_fields, *PackConfig.model_fields, *ExtendConfig.model_fields):
        assert re.search(rf"\b{name}\b", text), name


def test_a_corpus_that_is_not_there_yet_is_named_and_the_file_written(
    giraffe, tiny_llama, corpus, tmp_path
):
    base = ("init", "--model", tiny_llama, "--target-len", "512", "--data")
    later = giraffe(*base, tmp_path / "later.jsonl", "--out", tmp_path / "a.yaml")
    assert later.code == 0, later.stderr
    assert f"warning: `{tmp_path}/later.jsonl` does not exist" in later.stderr
    assert (tmp_path / "a.yaml").exists()
    there = giraffe(*base, corpus, "--out", tmp_path / "b.yaml")
    assert "does not exist" not in there.stderr


def test_an_existing_file_stays(giraffe, tiny_arguments, tmp_path):
    out = tmp_path / "c.yaml"
    out.write_text("mine")
    result = giraffe("init", *tiny_arguments, "--out", out)
    assert result.code == 3
    assert f"{out} exists" in result.stderr
    assert out.read_text() == "mine"


def test_calf_starts_from_its_own_settings(giraffe, tmp_path):
    text = written(giraffe, tmp_path / "c.yaml", "--target-len", "16k", "--device", "cpu")
    own = yaml.safe_load((Path(__file__).parent.parent / "configs" / "calf-16k.yaml").read_text())
    found = yaml.safe_load(text)
    assert {key: found["train"][key] for key in own["train"]} == own["train"]
    assert "that of configs" not in text  # rates that were given have no reason of ours


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--target-len", "512"), 2, "needs --data"),
        (("--target-len", "128", "--data", "x.jsonl"), 3, "hint: choose a longer --target-len\n"),
        (("--target-len", "512", "--data", "x.jsonl", "--device", "h1000"), 2, "h100"),
        (("--target-len", "16m", "--data", "x", "--device", "cpu", "--window", "16m",
          "--device-memory", "600MB"), 4, "training needs at least"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(giraffe, tiny_llama, tmp_path, arguments, code, words):
    out = tmp_path / "c.yaml"
    result = giraffe("init", "--model", tiny_llama, *arguments, "--out", out)
    assert result.code == code
    assert words in result.stderr
    assert not out.exists()


def test_a_scaled_base_is_refused_until_told_how(giraffe, corpus, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    base = build_tiny_llama(tmp_path / "b", rope_parameters=rope, max_position_embeddings=256)
    arguments = ("--model", base, "--data", corpus, "--target-len", "1k")
    refused = giraffe("init", *arguments, "--out", tmp_path / "c.yaml")
    assert refused.code == 3
    assert "--on-existing-rope compose" in refused.stderr
    written(giraffe, tmp_path / "c.yaml", *arguments, "--on-existing-rope", "compose")


def start(shape: str, target: str, machine: str, hours: float = 24.0, gpus: int = 1):
    place = named_machine(machine, gpus)
    given = {"model": shape, "target_length": target, "rope": {"strategy": "yarn"}}
    return starting_point(named_shape(shape), given, place, assumed_pace(place, "bfloat16"), hours)


def test_the_window_is_the_longest_that_fits_and_ends_in_time():
    assert start("smollm2-135m", "16k", "h100").values["train"]["window"] == "16k"
    large, soon = start("llama3-8b", "128k", "h100", 1000.0), start("llama3-8b", "128k", "h100")
    assert (
        large.values["train"] | {"window": "128k", "windows_per_step": 8} == large.values["train"]
    )
    assert large.estimate["seconds"] > 24 * 3600 >= soon.estimate["seconds"]
    tokens = [build(one.values).window * build(one.values).train.windows_per_step
              for one in (large, soon)]  # fmt: skip
    assert tokens[1] < tokens[0]


def test_a_step_uses_every_gpu():
    train = start("llama3-8b", "64k", "h100", gpus=8).values["train"]
    assert train["windows_per_step"] % 8 == 0
    # three windows of 64k five times are 0.98 M tokens, six times would be more than 2^20
    assert start("llama3-8b", "64k", "h100", 1000.0, 3).values["train"]["windows_per_step"] == 15


def test_too_few_hours_give_the_fastest_plan():
    found = start("llama3-8b", "64k", "h100", 0.01)
    assert found.values["train"] | {"window": "2k", "windows_per_step": 1} == found.values["train"]
    assert (
        "positions skip (PoSE); full windows take longer than 0.01 hours"
        in (found.reasons["train.window"])
    )
