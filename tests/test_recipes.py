"""Every published recipe builds, names its source and what differs, and takes a step."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from test_configs import ROOT, header

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.merge import merge_stage
from giraffe_cli.plan.estimate import estimate
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.plan.shapes import named_shape
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import Head, make_strategy, make_table
from giraffe_cli.stages import Timings
from giraffe_cli.training import pack_stages, train_stages, training_stages

RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
METHODS = ("giraffe", "yarn", "longlora", "longqlora", "pose", "prolong", "longrope")
SIZES = {"7b": "llama2-7b", "8b": "llama3-8b", "13b": "llama2-13b"}

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def test_every_promised_method_has_a_recipe():
    assert {path.stem.split("-")[0] for path in RECIPES} == set(METHODS)


@each_recipe
def test_a_header_names_purpose_source_command_and_what_differs(recipe):
    text = header(recipe)
    for entry in ("Purpose:", "Source:", "Run:", "Expected:", "Measured:", "Recipe:", "Differs:"):
        assert entry in text, entry
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert recipe.relative_to(ROOT).as_posix() in text


@each_recipe
def test_the_commands_in_a_header_are_real(recipe, giraffe):
    lines = [line for line in header(recipe).splitlines() if "giraffe " in line]
    lines = [line[line.index("giraffe ") :] for line in lines]
    assert any(line.startswith("giraffe extend") for line in lines)
    for line in lines:
        assert giraffe(*shlex.split(line)[1:], "--help").code == 0


@each_recipe
def test_its_name_tells_the_target_and_the_memory_is_what_the_plan_says(recipe):
    config = build(read_yaml(recipe), recipe.name)
    _, *_, size, target = recipe.stem.split("-")
    assert config.target_length == int(target.removesuffix("k")) * 1024
    (predicted,) = re.findall(r"memory about ([\d.]+) GB on an 80 GB GPU", header(recipe))
    machine = named_machine("h100")
    for stage in config.stage_configs():
        found = estimate(named_shape(SIZES[size]), stage, machine)
        assert found["fits"]
        assert f"{found['bytes']['total'] / 1e9:.1f}" == predicted


def test_the_tables_are_those_of_the_papers():
    """YaRN's s, ProLong's two θ, Giraffe's division by 8."""
    yarn, prolong, linear = (
        build(read_yaml(ROOT / "configs" / "recipes" / f"{name}.yaml"))
        for name in ("yarn-7b-128k", "prolong-8b-512k", "giraffe-linear-13b-32k")
    )
    assert [s.target_length // 4096 for s in yarn.stage_configs()] == [16, 32]
    assert [s.rope.knobs["rope_theta"] for s in prolong.stage_configs()] == [8e6, 1.28e8]
    table = make_table(linear.rope.strategy, linear.rope.knobs, Head(128, 1e4, 4096, 32768))
    assert table.inv_freq[0] == 1 / 8


def factors_of(strategy: str) -> dict[str, Any]:
    """LongRoPE takes divisors that a search found: for the tiny model, its example's."""
    if strategy != "longrope":
        return {}
    return dict(
        type(make_strategy("longrope", {"factors": [1.0]})).example(Head(16, 1e4, 128, 512))
    )


def changed_tensors(base: Path, merged: Path) -> list[str]:
    """Names of the weights that are not what they were."""
    old, new = (load_file(folder / "model.safetensors") for folder in (base, merged))
    return [name for name in old if not old[name].equal(new[name])]


def shrunk(recipe: Path, model: Path, corpus: Path) -> dict[str, Any]:
    """The recipe with model, data, lengths and counts of a size a test can afford; strategy,
    knobs, method, adapter and schedule stay."""
    values = read_yaml(recipe)
    values |= {"model": str(model), "data": [str(corpus)], "eval": {}}
    values["train"] |= {"steps": 1, "window": 128, "windows_per_step": 1, "warmup_steps": 0}
    values["rope"]["knobs"] = values["rope"].get("knobs") or factors_of(values["rope"]["strategy"])
    if "pack" in values:
        values["pack"] |= {key: 64 for key in ("overlap", "min_doc_len") if key in values["pack"]}
    if "stages" in values:
        for stage, target in zip(values["stages"], (256, 512), strict=True):
            stage |= {"target_length": target, "steps": 1, "warmup_steps": 0}
    else:
        values["target_length"] = 512
    return values


@each_recipe
def test_a_recipe_takes_a_step_and_is_merged(recipe, tiny_llama, corpus, tmp_path):
    """What `extend` does up to the merge; the proof, a process of its own, is the same for all."""
    config, silent = build(shrunk(recipe, tiny_llama, corpus)), SilentReporter()
    checkpoint, timings = inspect(config.model, tmp_path), Timings.kept(tmp_path / "timings.json")
    stages = training_stages(config, checkpoint, tmp_path / "run")
    packed = pack_stages(stages, checkpoint, silent)
    results = train_stages(stages, packed, checkpoint, timings, silent)
    assert [(r.steps, r.trained_tokens) for r in results] == [(1, 128)] * len(stages)
    assert stages[-1].table.strategy == read_yaml(recipe)["rope"]["strategy"]
    merged = merge_stage(
        checkpoint, results[-1].adapter_dir, stages[-1].table, tmp_path / "model", silent
    )
    assert changed_tensors(checkpoint.path, merged)


@pytest.mark.slow
@each_recipe
def test_a_recipe_runs_as_a_command(recipe, giraffe, tiny_llama, corpus, tmp_path):
    values = shrunk(recipe, tiny_llama, corpus)
    small, out = tmp_path / "small.yaml", tmp_path / "run"
    small.write_text(yaml.safe_dump(values))
    result = giraffe("extend", "--config", small, "--out", out, "--no-eval", "--json")
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout)["verify"]["ok"]
