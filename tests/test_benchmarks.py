"""The training benchmarks run end to end at toy sizes, and refuse to compare unlike paths.

Not their figures, which are the machine's; the arithmetic on figures, the gate, and what a second
start measures again. TRL is no dependency and takes part by hand only (`--peers`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import load_script

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """scripts/bench_train.py."""
    return load_script("bench_train")


@pytest.fixture(scope="module")
def paths() -> ModuleType:
    """scripts/train_paths.py."""
    return load_script("train_paths")


def run(script: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPTS / script, *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


# ── the gate ─────────────────────────────────────────────────────────────────────────────────


def figures(loss: float, grad_norm: float = 2.0) -> dict[str, list[float]]:
    return {"loss": [loss, 0.0], "grad_norm": [grad_norm, 0.0]}


def test_the_gate_lets_equal_first_steps_pass(bench):
    """Only the first step counts: later ones follow from the optimiser's rounding."""
    others = {"hf": {**figures(10.4200), "x": 1}}
    assert bench.gate("cell", figures(10.4209, 2.0001), others) is None


@pytest.mark.parametrize("wrong", [figures(10.4212), figures(10.42, 2.003), figures(float("nan"))])
def test_the_gate_names_cell_and_path_of_an_unlike_first_step(bench, wrong):
    with pytest.raises(SystemExit, match=r"d256/ours: (loss|grad_norm) of step 1 is .*, of hf "):
        bench.gate("d256/ours", wrong, {"hf": figures(10.42)})


# ── the table ────────────────────────────────────────────────────────────────────────────────


def work(length: int, ours: tuple[float, float], hf: tuple[float, float], **kind: str):
    paths = {
        path: {"cpu_seconds": cpu, "wall_seconds": cpu, "net_bytes": net}
        for path, (cpu, net) in {"ours": ours, "hf": hf}.items()
    }
    place = {"model": "d256-v32k", "documents": "one", **kind, "length": length}
    return {**place, "paths": paths}


def test_growth_and_goals_are_those_of_figures_one_can_follow(bench):
    """Ours: 100 B a token and 4x the time for 2x the tokens (slope 2); HF: 500 B, slope 1."""
    works = [
        work(4096, (2.0, 409_600), (5.0, 2_048_000)),
        work(8192, (8.0, 819_200), (10.0, 4_096_000)),
        work(8192, (2.0, 786_432), (1.0, 1), model="d256-v8k"),
    ]
    for entry in works:
        entry["ours_over"] = bench._ratios(entry["paths"])
    rows = {(row["model"], row["path"]): row for row in bench.growth(works)}
    ours, hf = rows["d256-v32k", "ours"], rows["d256-v32k", "hf"]
    assert (ours["bytes_per_token"], ours["cpu_slope"], ours["memory_slope"]) == (100, 2, 1)
    assert (hf["bytes_per_token"], hf["cpu_slope"], hf["memory_slope"]) == (500, 1, 1)

    found = bench.goals(works)
    assert found["one_document_cpu_over_hf"] == {"found": 0.8, "allowed": 0.9, "ok": True}
    assert found["one_document_net_bytes_over_hf"]["ok"]
    vocabulary = found["bytes_per_token_v32k_over_v8k"]
    assert vocabulary["bytes"] == {"d256-v32k": 100, "d256-v8k": 96}
    assert vocabulary["found"] == pytest.approx(100 / 96)
    assert vocabulary["logits_kept"] == pytest.approx(4 / 96_000)
    assert vocabulary["ok"]
    assert not any("packed" in name or "trl" in name for name in found)


def test_packed_documents_tile_the_window_longest_first(bench):
    for length in (64, 2048, 8192):
        lengths = bench.document_lengths("packed", length)
        assert len(lengths) == 7
        assert sum(lengths) == length
        assert lengths == sorted(lengths, reverse=True)
        assert bench.squared_share(lengths) <= 0.2
    assert bench.squared_share([2, 2]) == 0.5


# ── what is measured ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("documents", ["one", "packed"])
def test_ours_trains_on_what_stock_transformers_trains_on(paths, documents, tmp_path):
    """The first loss is that of PEFT over stock attention, with transformers' own block mask."""
    cell = {"model": "tiny", "length": 64, "documents": documents, "steps": 1, "weights": ""}
    cell["adapters"] = str(tmp_path / "adapters.pt")
    with warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        paths.adapters(cell)
        found = paths.ours(cell)
        model = paths.peft_model(cell)
    pieces = paths.documents_of(cell)
    row = [token for piece in pieces for token in piece]
    labels = [label for piece in pieces for label in (-100, *piece[1:])]
    places = [place for piece in pieces for place in range(len(piece))]
    ids, positions, targets = (torch.tensor([values]) for values in (row, places, labels))
    loss = model(ids, position_ids=positions, labels=targets, use_cache=False).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert found["loss"][0] == pytest.approx(float(loss.detach()), abs=1e-5)  # float32 sums of 6.8
    assert found["grad_norm"][0] == pytest.approx(float(torch.nn.utils.get_total_norm(gradients)))
    assert len(gradients) == 2 * len(paths.TARGETS)


# ── end to end ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_bench_train_measures_gates_and_resumes(tmp_path):
    cells, out = tmp_path / "cells.jsonl", tmp_path / "train.json"
    options = ["--models", "tiny", "--lengths", 64, "--rounds", 1, "--steps", 1]
    options += ["--cells", cells, "--out", out]
    done = run("bench_train.py", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert set(result) == {"settings", "works", "growth", "goals", "left_out"}
    assert result["left_out"] == ["trl: no --peers"]
    assert [entry["documents"] for entry in result["works"]] == ["one", "packed"]
    for entry in result["works"]:
        assert set(entry["paths"]) == {"ours", "hf"}
        assert set(entry["ours_over"]["hf"]) == {"cpu_seconds", "wall_seconds", "net_bytes"}
        # same weights, rates and betas: the second step, after an update, agrees as well
        ours, hf = (entry["paths"][path]["loss"] for path in ("ours", "hf"))
        assert ours == pytest.approx(hf, abs=1e-4)
    lines = cells.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4

    # A second start measures what is missing. A path that trained on something else ends it, and
    # its figures are not kept.
    row = json.loads(lines[0])
    assert row["cell"]["path"] == "ours"
    row["found"]["loss"][0] += 0.002
    cells.write_text("\n".join([json.dumps(row), *lines[2:]]) + "\n", encoding="utf-8")
    done = run("bench_train.py", *options)
    assert done.returncode == 1
    assert "tiny/64/one/hf: loss of step 1 is" in done.stderr
    assert len(cells.read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.slow
def test_bench_attention_measures_and_checks(tmp_path):
    out = tmp_path / "attention.json"
    options = ["--lengths", 32, 64, "--rounds", 1, "--steps", 1, "--out", out]
    done = run("bench_attention.py", *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert set(result) == {"settings", "rows", "slopes", "goals"}
    assert [goal["ok"] for goal in result["goals"].values()] == [True, True]
    for row in result["rows"]:
        differences = {path: found["difference"] for path, found in row["paths"].items()}
        assert differences["dense"] < 1e-5
        # without a mask documents see each other, and the reference says so
        assert differences["causal"] > 0.1


# ── generation ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def generation() -> ModuleType:
    return load_script("bench_generate")


def test_the_goals_of_generation_are_ratios_one_can_follow(generation):
    path = {"first_seconds": 10.0, "second_seconds": 0.5, "net_bytes": 10, "kv_bytes": 100}
    ours = {**path, "decode_tokens_per_second": 30.0}
    theirs = {**path, "net_bytes": 80, "first_seconds": 8.0, "decode_tokens_per_second": 15.0}
    paths = {"giraffe": ours, "transformers": theirs, "giraffe-int4": {**ours, "kv_bytes": 30}}
    found = generation.goals([{"length": 7, "paths": paths}])
    assert {name: goal["found"] for name, goal in found.items()} == {
        "7_second_over_first": 0.05,
        "7_first": 1.25,
        "7_decode": 0.5,
        "7_net": 0.125,
        "7_kv_int4": 0.3,
    }
    assert [name for name, goal in found.items() if not goal["ok"]] == ["7_first"]


@pytest.mark.parametrize("path", ["giraffe", "giraffe-int4", "transformers"])
def test_a_cell_of_generation_runs(generation, tiny_llama, path):
    cell = {"model": str(tiny_llama), "shape": "", "dtype": "float32", "device": "cpu"}
    found = generation.measure({**cell, "new": 4, "chunk": 64, "path": path, "length": 300})
    assert found["first_seconds"] > 0
    assert found["decode_tokens_per_second"] > 0
    whole = 303 * 2 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, heads, width, bytes
    assert found["kv_bytes"] == (pytest.approx(whole, rel=0.01) if path != "giraffe-int4" else
                                 pytest.approx(0.6 * whole, rel=0.4))  # fmt: skip


def test_generation_is_compared_with_stock_transformers(tiny_llama):
    script = load_script("compare_generate")
    found = script.compare(tiny_llama, 600, 64, 8)
    assert found["prompt_tokens"] == 600 - 64 - 8
    assert found["greedy_equal"]
    assert found["top1"]["auto"] == 1
    assert found["top1"]["int8"] > 0.9


def test_a_selection_that_names_no_setting_is_told(tmp_path):
    ran = run("bench_plan.py", "--only", "no such", "--cells", tmp_path / "cells.jsonl")
    assert ran.returncode == 1
    assert ran.stderr.startswith("--only no such: no setting has that; d256 8192 one float32 ")
