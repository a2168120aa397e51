"""Every YAML in configs/ builds, explains itself, and runs on the tiny model with small lengths."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from giraffe_cli.config.base import AUTO
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_yaml
from giraffe_cli.plan.estimate import estimate
from giraffe_cli.plan.machine import named_machine
from giraffe_cli.plan.shapes import named_shape
from giraffe_cli.rope.base import Head, make_strategy, make_table

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
NAMES = {
    "calf-16k",
    "smollm2-135m-16k",
    "smollm2-135m-32k",
    "smollm2-135m-32k-stages",
    "llama2-7b-16k",
    "llama3-8b-64k",
    "llama3-8b-128k",
    "llama3-8b-512k",
}

each_preset = pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)


def header(path: Path) -> str:
    """The comment block at the top, without its `#`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    size = next(n for n, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:size])


def sizes(path: Path) -> str:
    """`smollm2-135m-32k` of a preset that gets there in stages."""
    return path.stem.removesuffix("-stages")


def test_the_promised_presets_exist():
    assert {path.stem for path in PRESETS} >= NAMES


@each_preset
def test_a_preset_builds_and_its_name_tells_its_target(preset):
    config = build(read_yaml(preset), preset.name)
    assert sizes(preset).endswith(f"-{config.target_length // 1024}k")
    assert (preset.stem != sizes(preset)) == bool(config.stages)
    if config.rope.strategy != AUTO:
        make_strategy(config.rope.strategy, config.rope.knobs)


@each_file
def test_a_header_says_purpose_command_cost_and_who_measured(path):
    text = header(path)
    for entry in ("Purpose:", "Run:", "Expected:", "memory", "time", "score", "Measured:"):
        assert entry in text, entry
    assert path.relative_to(ROOT).as_posix() in text


@each_preset
def test_the_commands_in_a_header_are_real(preset, giraffe):
    lines = [line for line in header(preset).splitlines() if "giraffe extend" in line]
    assert lines
    for line in lines:
        words = shlex.split(line[line.index("giraffe extend") :])
        assert giraffe(*words[1:], "--help").code == 0


def test_calf_is_what_extend_uses_by_itself():
    preset = read_yaml(ROOT / "configs" / "calf-16k.yaml")
    assert preset.pop("target_length") == "16k"
    assert preset == read_yaml(ROOT / "giraffe_cli" / "calf" / "extend.yaml")


@pytest.mark.parametrize(("name", "theta"), [("llama3-8b-64k", 8e6), ("llama3-8b-512k", 1.28e8)])
def test_a_chosen_alpha_gives_the_base_its_header_names(name, theta):
    config = build(read_yaml(ROOT / "configs" / f"{name}.yaml"))
    table = make_table(
        config.rope.strategy, config.rope.knobs, Head(128, 5e5, 8192, config.target_length)
    )
    assert table.rope_parameters["rope_theta"] == pytest.approx(theta, rel=2e-3)


@pytest.mark.parametrize(
    "preset", [p for p in PRESETS if p.stem != "calf-16k"], ids=lambda path: path.stem
)
def test_the_memory_a_header_predicts_is_what_the_plan_says(preset):
    """On a GPU of 80 GB, or CPUs with 16 GB, with the levers the plan takes there."""
    shape = named_shape(sizes(preset).rpartition("-")[0])
    without = named_machine("cpu", 1, 16 * 10**9)
    machines = {
        "an 80 GB GPU": named_machine("h100"),
        "a CPU": dataclasses.replace(without, has_bfloat16=True),
        "one without bfloat16": without,
    }
    predicted = re.findall(rf"([\d.]+) GB on ({'|'.join(machines)})", header(preset))
    assert [where for _, where in predicted] in (["an 80 GB GPU"], [*machines][1:])
    for gigabytes, where in predicted:
        found = estimate(shape, build(read_yaml(preset)), machines[where])
        assert found["fits"]
        assert f"{found['bytes']['total'] / 1e9:.1f}" == gigabytes


CARDS = {"H100": "h100", "RTX 4090": "rtx4090"}


@pytest.mark.parametrize(
    "preset", [p for p in PRESETS if p.stem.startswith("llama")], ids=lambda path: path.stem
)
def test_the_hours_a_header_predicts_are_the_plans(preset):
    shape = named_shape(sizes(preset).rpartition("-")[0])
    config = build(read_yaml(preset))
    one_line = " ".join(header(preset).split())
    predicted = re.findall(rf"(\d+) h on an ({'|'.join(CARDS)})", one_line)
    assert predicted
    for hours, card in predicted:
        found = estimate(shape, config, named_machine(CARDS[card]))
        assert round(config.train.steps * found["seconds_per_step"] / 3600) == int(hours)


def stages(preset: Path) -> int:
    """How many targets it trains for."""
    return len(build(read_yaml(preset)).stage_configs())


def small_knobs(preset: Path) -> str:
    """Of the tasks that need more room than a window of 128 has."""
    tasks = yaml.safe_load(preset.read_text()).get("eval", {}).get("tasks", [])
    return "{short: {targets: 16}}" if "short" in tasks else "{}"


def shrunk(preset: Path, tiny_llama: Path, corpus: Path, out: Path) -> list[object]:
    """The preset's command with model, data and lengths of a size a test can afford."""
    return [
        *("extend", "--config", preset, "--model", tiny_llama, "--data", corpus, "--out", out),
        *(("--stages", "256,512") if stages(preset) > 1 else ("--target-len", "512")),
        *("--window", "128", "--steps", "1"),
        *("--set", "train.windows_per_step=1", "--set", "eval.lengths=[128,512]"),
        *("--set", f"eval.knobs={small_knobs(preset)}", "--set", "eval.documents=2"),
    ]


@each_preset
def test_a_preset_plans_without_writing(preset, giraffe, tiny_llama, corpus, tmp_path):
    result = giraffe(*shrunk(preset, tiny_llama, corpus, tmp_path / "run"), "--dry-run", "--json")
    assert result.code == 0, result.stderr
    plan = json.loads(result.stdout)
    assert (plan["native_length"], plan["target_length"]) == (128, 512)
    assert plan["steps"] == len(plan["stages"]) == stages(preset)
    assert not (tmp_path / "run").exists()


@each_preset
def test_a_preset_trains_one_step(preset, giraffe, tiny_llama, corpus, tmp_path):
    out = tmp_path / "run"
    result = giraffe(*shrunk(preset, tiny_llama, corpus, out), "--no-eval", "--json")
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    steps = stages(preset)
    assert (report["steps"], report["trained_tokens"]) == (steps, 128 * steps)
    asked = yaml.safe_load(preset.read_text())["rope"]["strategy"]
    assert bool(report["rope_choice"]) == (asked == AUTO)
    assert report["strategy"] == asked or asked == AUTO
    assert report["verify"]["ok"]
    assert (out / "model" / "model.safetensors").exists()
