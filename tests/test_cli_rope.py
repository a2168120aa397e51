"""`giraffe rope list` and `giraffe rope show` through the real command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from giraffe_cli.rope.base import Head, make_table, strategies

LLAMA_2 = ["--head-dim", 128, "--rope-theta", 10000, "--original-len", "4k", "--target-len", "16k"]


def test_list_json_names_every_strategy(giraffe):
    result = giraffe("rope", "list", "--json")
    assert result.code == 0
    rows = json.loads(result.stdout)["strategies"]
    assert [row["name"] for row in rows] == sorted(strategies())
    yarn = next(row for row in rows if row["name"] == "yarn")
    assert yarn["knobs"][0]["name"] == "beta_fast"
    assert yarn["knobs"][0]["default"] == 32.0


def test_list_for_people(giraffe):
    result = giraffe("rope", "list")
    assert result.code == 0
    for name in strategies():
        assert name in result.stdout
    assert "next: giraffe rope show yarn" in result.stdout


@pytest.mark.parametrize("name", sorted(strategies()))
def test_show_json_is_the_table(giraffe, name):
    result = giraffe("rope", "show", name, *LLAMA_2, "--json")
    assert result.code == 0
    shown = json.loads(result.stdout)
    assert shown == make_table(name, {}, Head(128, 1e4, 4096, 16384)).to_json()
    assert {
        "strategy",
        "head_dim",
        "rope_theta",
        "original_max_position_embeddings",
        "target_length",
        "inv_freq",
        "attention_factor",
        "rope_parameters",
    } <= shown.keys()


def test_show_for_people(giraffe):
    """Linear, d = 4, θ = 10^4, 1k → 4k: pair 0 turns every 8π = 25.1 tokens, 40.7 times in 1k."""
    result = giraffe(
        "rope", "show", "linear", "--head-dim", 4, "--original-len", "1k", "--target-len", "4k"
    )
    assert result.code == 0
    assert "linear: 1k → 4k tokens (s = 4), head_dim 4, rope_theta 10000" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["0", "0.25", "25.1327", "0.0245437", "40.7437", "4"] in rows
    assert ["1", "0.0025", "2513.27", "2.45437", "0.407437", "4"] in rows
    assert "attention factor (cos and sin are multiplied by it): 1.000000" in result.stdout
    assert '"rope_type": "linear"' in result.stdout


def test_show_takes_the_shape_of_a_checkpoint(giraffe, tiny_llama):
    result = giraffe("rope", "show", "--model", tiny_llama, "--target-len", "1k", "--json")
    assert json.loads(result.stdout) == make_table("yarn", {}, Head(16, 1e4, 128, 1024)).to_json()
    changed = ["--rope-theta", 5e5, "--original-len", 256]
    result = giraffe(
        "rope", "show", "ntk", "--model", tiny_llama, *changed, "--target-len", 512, "--json"
    )
    assert json.loads(result.stdout) == make_table("ntk", {}, Head(16, 5e5, 256, 512)).to_json()


def test_show_sets_knobs(giraffe):
    knobs = ["--set", "beta_fast=64", "--set", "truncate=false"]
    shown = json.loads(giraffe("rope", "show", "yarn", *LLAMA_2, *knobs, "--json").stdout)
    assert (shown["knobs"]["beta_fast"], shown["knobs"]["truncate"]) == (64, False)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["yaarn", *LLAMA_2], 3, "did you mean `yarn`?"),
        (["yarn", *LLAMA_2, "--set", "beta_fats=64"], 3, "did you mean `beta_fast`"),
        (["yarn", *LLAMA_2, "--set", "beta_fast=lots"], 3, "must be of type float"),
        (["yarn", *LLAMA_2, "--set", "beta_fast"], 2, "no `knob=value`"),
        (["yarn", *LLAMA_2, "--set", "beta_fast=["], 2, "is not YAML"),
        (["yarn", *LLAMA_2[:-1], "4k"], 3, "not longer than the native window 4096"),
        (["yarn", *LLAMA_2[:-1], "16kk"], 3, "`16kk` is not a length in tokens"),
        (["yarn", *LLAMA_2, "--model", "calf"], 2, "--model and --head-dim both name a shape"),
        (["yarn", "--head-dim", 7, "--target-len", "16k"], 3, "head_dim is 7, needs an even"),
        (["yarn", "--head-dim", 8, "--rope-theta", 0.5, "--target-len", "16k"], 3, "above 1"),
        (["yarn", "--model", "./nowhere", "--target-len", "16k"], 3, "does not exist"),
        (["yarn"], 2, "--target-len"),
    ],
)
def test_mistakes(giraffe, arguments, code, text):
    result = giraffe("rope", "show", *arguments)
    assert result.code == code
    assert text in result.stderr
    assert result.stdout == ""


def test_help_has_examples(giraffe):
    result = giraffe("rope", "show", "--help")
    assert result.code == 0
    assert "giraffe rope show yarn --target-len 16k" in result.stdout


def test_show_of_a_given_shape_needs_no_torch(tmp_path):
    executable = shutil.which("giraffe")
    command = [executable] if executable else [sys.executable, "-m", "giraffe_cli"]
    arguments = ["rope", "show", *map(str, LLAMA_2), "--json"]
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
