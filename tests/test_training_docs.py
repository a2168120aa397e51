"""docs/training.md stays true: its commands run, in their order, on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from giraffe_cli.config.building import build
from giraffe_cli.config.stages import StageConfig

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, flags=re.M | re.S)
    for line in block.splitlines()
    if not language
]
SIZES = {
    "16k,32k": "256,512",
    "16k": "512",
    "2k": "64",
    "books.jsonl.gz": "books.jsonl",
    "train.short_context=1k": "train.short_context=32",
}
SMALL = [
    *("--set", "train.steps=2", "--set", "train.warmup_steps=0", "--set", "pack.hold_out=0.3"),
    *("--set", "eval.lengths=[128]", "--set", "eval.documents=2", "--set", "eval.tasks=[nll]"),
    *("--set", "eval.knobs={nll: {anchors: 1, targets: 32}}"),
    *("--set", "train.held_out_windows=2"),
]


@pytest.mark.slow
def test_the_commands_run_in_their_order(tiny_llama, corpus, giraffe, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m").symlink_to(tiny_llama)
    (tmp_path / "books.jsonl").write_bytes(corpus.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 7
    for line in COMMANDS:
        words = [SIZES.get(word, word) for word in shlex.split(line)[1:]]
        result = giraffe(*words, *(SMALL if words[0] == "extend" else []), "--json")
        assert result.code == 0, f"{line}\n{result.stderr}"
        told = json.loads(result.stdout)
    assert [run["name"] for run in told["runs"]] == ["stages", "control", "wsd"]
    assert (tmp_path / "runs" / "compared" / "report.html").exists()


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_exists(line, giraffe):
    assert giraffe(*shlex.split(line)[1:], "--help").code == 0


def test_the_config_is_one_and_every_knob_of_a_stage_is_named():
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", TEXT, flags=re.M | re.S)
    first, last = build(yaml.safe_load(block)).stage_configs()
    assert (first.target_length, first.train.steps) == (16384, 80)
    assert (last.rope.strategy, last.train.learning_rate) == ("ntk", 1e-4)
    knobs = set(StageConfig.model_fields) - {"target_length"}
    assert all(f"`{knob}`" in TEXT for knob in knobs)
