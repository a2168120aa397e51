"""`giraffe rope list` and `giraffe rope show` through the real command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from giraffe_cli.rope.base import Head, make_table, strategies
from giraffe_cli.rope.install import finish_directory

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
    head = Head(128, 1e4, 4096, 16384)
    knobs = strategies()[name].example(head)
    settings = [part for key, value in knobs.items() for part in ("--set", f"{key}={list(value)}")]
    result = giraffe("rope", "show", name, *LLAMA_2, *settings, "--json")
    assert result.code == 0
    shown = json.loads(result.stdout)
    expected = make_table(name, knobs, head).to_json()
    assert {key: shown[key] for key in expected} == json.loads(json.dumps(expected))
    assert shown["pairs_below_one_turn"] == list(range(46, 64))
    assert shown["config"]["rope_parameters"] == shown["rope_parameters"]
    assert set(shown["runtimes"]) == {"transformers", "transformers-v4", "vllm", "llama.cpp"}
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
    """Linear, d = 4, θ = 10^4, 1k → 4k: trained, pair 0 turned 1024/2π = 163 times and pair 1 1.63
    times; divided by 4, pair 0 turns once in 8π = 25.1 tokens."""
    result = giraffe(
        "rope", "show", "linear", "--head-dim", 4, "--original-len", "1k", "--target-len", "4k"
    )
    assert result.code == 0
    assert "linear: 1k → 4k tokens (s = 4), head_dim 4, rope_theta 10000" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["0", "0.25", "25.1327", "0.0245437", "162.975", "4"] in rows
    assert ["1", "0.0025", "2513.27", "2.45437", "1.62975", "4"] in rows
    assert "attention factor (cos and sin are multiplied by it): 1.000000" in result.stdout
    assert '"rope_type": "linear"' in result.stdout


def test_show_takes_the_shape_of_a_checkpoint(giraffe, tiny_llama):
    result = giraffe("rope", "show", "--model", tiny_llama, "--target-len", "1k", "--json")
    table = make_table("yarn", {}, Head(16, 1e4, 128, 1024))
    assert json.loads(result.stdout)["inv_freq"] == list(table.inv_freq)
    changed = ["--rope-theta", 5e5, "--original-len", 256]
    result = giraffe(
        "rope", "show", "ntk", "--model", tiny_llama, *changed, "--target-len", 512, "--json"
    )
    table = make_table("ntk", {}, Head(16, 5e5, 256, 512))
    assert json.loads(result.stdout)["inv_freq"] == list(table.inv_freq)


def test_pairs_that_never_completed_a_turn_are_marked(giraffe):
    """Llama-2: λ_46 = 2π·10^(4·46/64) = 4,712 tokens is the first above 4,096."""
    shown = giraffe("rope", "show", "yarn", *LLAMA_2).stdout
    marked = [line.split()[0] for line in shown.splitlines() if line.rstrip().endswith("< 1")]
    assert marked == [str(pair) for pair in range(46, 64)]
    assert "pairs 46 to 63 (18 of 64) turned less than once in 4k tokens" in shown
    assert "llama.cpp: " in shown


def test_several_strategies_side_by_side(giraffe, tmp_path):
    shown = giraffe("rope", "show", "all", *LLAMA_2)
    assert shown.code == 0
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines() if line.split()}
    assert set(strategies()) <= rows.keys()
    assert rows["linear"][1:] == ["linear", "0", "4", "4", "4", "4", "4", "1.0000"]
    tables = json.loads(giraffe("rope", "show", "yarn", "ntk", *LLAMA_2, "--json").stdout)
    assert [table["strategy"] for table in tables["tables"]] == ["yarn", "ntk"]


def test_plot_is_a_png_and_the_same_twice(giraffe, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        done = giraffe("rope", "show", "yarn", "truncated", *LLAMA_2, "--plot", path)
        assert done.code == 0
        assert f"wrote {path}" in done.stderr
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_scaled_model_is_composed_or_replaced_on_request(giraffe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "scaled")
    finish_directory(folder, make_table("linear", {}, Head(16, 1e4, 128, 512)))
    asked = ("rope", "show", "linear", "--model", folder, "--target-len", "1k", "--json")
    refused = giraffe(*asked)
    assert refused.code == 3
    assert "--on-existing-rope compose" in refused.stderr
    composed = json.loads(giraffe(*asked, "--on-existing-rope", "compose").stdout)
    replaced = json.loads(giraffe(*asked, "--on-existing-rope", "replace").stdout)
    assert (composed["inv_freq"][0], composed["rope_parameters"]["rope_type"]) == (
        1 / 8,
        "longrope",
    )
    assert (replaced["inv_freq"][0], replaced["rope_parameters"]["rope_type"]) == (1 / 8, "linear")
    assert composed["original_max_position_embeddings"] == 512
    assert replaced["original_max_position_embeddings"] == 128


def test_list_says_what_each_runtime_makes_of_it(giraffe):
    rows = json.loads(giraffe("rope", "list", "--json").stdout)
    by_name = {row["name"]: row for row in rows["strategies"]}
    assert by_name["ntk"]["portable_to"]["llama.cpp"] == "exact"
    assert "giraffe export" in by_name["power"]["portable_to"]["llama.cpp"]
    assert "--max-model-len" in by_name["linear"]["portable_to"]["vllm"]
    assert {row["name"] for row in rows["positions"]} >= {"plain", "pose", "randomised"}


def test_show_sets_knobs(giraffe):
    knobs = ["--set", "beta_fast=64", "--set", "truncate=false"]
    shown = json.loads(giraffe("rope", "show", "yarn", *LLAMA_2, *knobs, "--json").stdout)
    assert (shown["knobs"]["beta_fast"], shown["knobs"]["truncate"]) == (64, False)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["yaarn", *LLAMA_2], 2, "did you mean `yarn`?"),
        (["yarn", *LLAMA_2, "--set", "beta_fats=64"], 3, "did you mean `beta_fast`"),
        (["yarn", *LLAMA_2, "--set", "beta_fast=lots"], 3, "must be of type float"),
        (["yarn", *LLAMA_2, "--set", "beta_fast"], 2, "no `knob=value`"),
        (["yarn", *LLAMA_2, "--set", "beta_fast=["], 2, "no plain YAML"),
        (["yarn", *LLAMA_2[:-1], "4k"], 3, "not longer than the native window 4096"),
        (["yarn", *LLAMA_2[:-1], "16kk"], 3, "`16kk` is not a length in tokens"),
        (["yarn", *LLAMA_2, "--model", "calf"], 2, "--model and --head-dim both name a shape"),
        (["yarn", "--head-dim", 7, "--target-len", "16k"], 3, "head_dim is 7, needs an even"),
        (["yarn", "--head-dim", 8, "--rope-theta", 0.5, "--target-len", "16k"], 3, "above 1"),
        (["yarn", "--model", "./nowhere", "--target-len", "16k"], 3, "does not exist"),
        (["yarn"], 2, "--target-len"),
        (["yarn", "ntk", *LLAMA_2, "--set", "alpha=3"], 2, "--set goes with one strategy"),
        (["yarn", *LLAMA_2, "--plot", "rope.svg"], 2, "a PNG is written"),
        (["yarn", *LLAMA_2, "--on-existing-rope", "ignore"], 2, "known: compose, refuse, replace"),
        (["longrope", *LLAMA_2], 3, "factors"),
        (["yarn", *LLAMA_2, "--on-existing-rope", "compose"], 2, "has no effect on a shape"),
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


@pytest.mark.parametrize("names", [("yarm",), ("yarn", "yarm"), ("all", "yarn")])
def test_show_of_what_is_no_strategy_is_a_usage_error(giraffe, names):
    done = giraffe("rope", "show", *names, "--target-len", "16k")
    assert done.code == 2
    assert f"error: {'all' if 'all' in names else 'yarm'}: no such RoPE strategy" in done.stderr
