"""scripts/bench_gpu.py on a CPU: cells by name, the arithmetic on figures, what fits a budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_script

SCRIPT = Path(__file__).parent.parent / "scripts" / "bench_gpu.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("bench_gpu")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return load_script("gpu_figures")


@pytest.fixture(scope="module")
def paths() -> ModuleType:
    return load_script("gpu_paths")


def test_cells_are_their_names(bench):
    for plan in bench.PLANS.values():
        assert [bench.Cell.named(name).name for name in plan] == plan
        assert len(set(plan)) == len(plan)
    with pytest.raises(ValueError, match="no cell `8b/8k/two/ours`"):
        bench.Cell.named("8b/8k/two/ours")


@pytest.mark.parametrize("name", ["8b/32k/one/ours", "8b/32k/packed/ours"])
def test_operations_are_those_of_the_formula(bench, figures, name):
    """Llama-3.1-8B by hand: 13.96 GFLOP forward in products, 1.05 in the head and 8.6 in attention
    at 32k; twice the first two and 3.5 times the last make 60.1 GFLOP a token, adapters 0.25."""
    cell = bench.Cell.named(name)
    work = figures.operations_of(cell)
    share = 1 if cell.documents == "one" else 0.25
    layer = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    rank_16 = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)
    product = 2 * (32 * layer + 2 * 4096 * 128256) + 6 * rank_16
    forward = 4 * 32 * 4096 * 16384 * share
    assert work["product"] / 32768 == pytest.approx(product)
    assert work["forward"] / 32768 == pytest.approx(forward)
    assert work["backward"] / 32768 == pytest.approx(2.5 * forward)


def test_the_limit_is_the_operations_at_the_ceilings(bench, figures):
    cell, ceilings = bench.Cell.named("8b/8k/one/ours"), dict.fromkeys(figures.ASSUMED, 1e15)
    work = figures.operations_of(cell)
    found = figures.figures(cell, {"outcome": "ok", "seconds": 2.0}, None)
    model = sum(work[name] for name in ceilings)
    assert figures.limit_of(cell, ceilings)[0] == pytest.approx(model / 1e15)
    assert found["mfu"] == pytest.approx(model / 2.0 / 989e12)
    assert found["tokens_per_second"] == 4096
    assert found["of_limit"] < found["of_reach"] < 2 * found["of_limit"]


def row(name: str, **found: object) -> dict[str, object]:
    work, path = name.partition(":")[0].rsplit("/", 1)
    settings = {"layers": "4"} if "layers" in name else {}
    return {"name": name, "work": work, "path": path, "settings": settings, "outcome": "ok"} | found


def test_unlike_losses_are_told(figures):
    mine = row("8b/8k/one/ours", loss=[1.0, 12.0], grad_norm=[1.0, 2.0])
    same = row("8b/8k/one/hf", loss=[9.0, 12.02], grad_norm=[9.0, 2.03])
    other = row("8b/8k/one/trl", loss=[1.0, 12.03], grad_norm=[1.0, 2.05])
    assert figures.gates([mine, same]) == []
    assert figures.gates([mine, same, other]) == [
        "8b/8k/one/trl: loss 12.03, of ours 12",
        "8b/8k/one/trl: grad_norm 2.05, of ours 2",
    ]


def test_goals_count_whole_models_that_ran(figures):
    levers = {"offload": "host", "checkpointing": "attention"}
    long = row("8b/128k/one/ours", tokens_per_second=2300, mfu=0.34, seconds=51.0, levers=levers)
    near = {**long, "seconds": 50.0, "levers": {**levers, "offload": "none"}}
    rows = [
        row("8b/32k/one/ours", tokens_per_second=6000, mfu=0.4, levers=levers),
        row("8b/32k/one/ours:layers=4", tokens_per_second=60000, mfu=0.6, levers=levers),
        row("8b/32k/one/trl", tokens_per_second=5500, outcome="ok"),
        row("8b/8k/one/ours", outcome="oom"),
        {**long, "allocated_bytes": 40e9},
        {**near, "allocated_bytes": 50e9},
    ]
    packed = row("8b/32k/packed/ours", tokens_per_second=9000, levers=levers)
    dense = row("8b/32k/packed/hf", tokens_per_second=2000)
    flex = row("8b/32k/packed/hf:kernel=flex", tokens_per_second=8000)
    flex["settings"] = {"kernel": "flex"}
    of_packed = figures.goals([packed, dense, flex])["8b_32k_packed_over_dense_mask"]
    assert of_packed == {"found": 4.5, "needed": 4.0, "ok": True}
    found = figures.goals(rows)
    assert found["8b_32k_tokens_per_second"] == {"found": 6000, "needed": 6000, "ok": True}
    assert found["8b_32k_over_trl"]["found"] == pytest.approx(6000 / 5500)
    assert found["8b_128k_bytes"]["ok"]
    assert not found["8b_128k_offload_bytes"]["ok"]
    assert found["8b_128k_offload_cost"]["found"] == pytest.approx(0.02)
    assert not {"8b_8k_tokens_per_second", "8b_32k_packed_over_dense_mask"} & set(found)


# ── running ──────────────────────────────────────────────────────────────────────────────────


def test_what_does_not_fit_is_skipped_and_what_breaks_is_a_result(bench, monkeypatch, tmp_path):
    """50 seconds hold the ceilings and a step at 8k, not one at 128k."""
    asked = []

    class Stub:
        def __init__(self, script, path, device, alloc):
            self.path = path

        def measure(self, cell, limit):
            asked.append(cell.name)
            assert limit <= 50
            return {"outcome": "oom", "told": "out of memory", "spent": 1.0}

        def stop(self):
            pass

    monkeypatch.setattr(bench, "Process", Stub)
    monkeypatch.setattr(bench, "_has_gpu", lambda: True)
    names = ["ceilings", "8b/128k/one/ours", "8b/8k/one/ours", "8b/8k/one/trl"]
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(
        sys, "argv", ["bench_gpu.py", "--budget", "50", "--out", str(out), "--cells", *names]
    )
    assert bench.main() == 0
    result = json.loads(out.read_text())
    assert asked == ["ceilings", "8b/8k/one/ours", "8b/8k/one/trl"]
    assert result["skipped"] == ["8b/128k/one/ours"]
    assert [one["outcome"] for one in result["cells"]] == ["oom", "oom"]


def test_without_a_gpu_it_says_so_before_anything_is_measured(bench, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_has_gpu", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--plan", "quick"])
    assert bench.main() == 2
    assert "no CUDA device here" in capsys.readouterr().out


# names of transformers 5.17, which 5.23 renamed
@pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("documents", ["one", "packed"])
def test_ours_and_trainer_train_on_the_same(bench, paths, documents):
    """Loss and gradient norm of a tiny model, after a step through one of its two layers."""
    found = {
        path: paths.measure(bench.Cell.named(f"tiny/96/{documents}/{path}:warm=1"), "cpu")
        for path in ("ours", "hf")
    }
    assert [one["outcome"] for one in found.values()] == ["ok", "ok"]
    for what in ("loss", "grad_norm"):
        assert found["ours"][what] == pytest.approx(found["hf"][what], rel=1e-3)
    assert len(found["ours"]["step_seconds"]) == 3


@pytest.mark.slow
def test_the_tiny_plan_runs(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--plan", "tiny", "--out", out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert len(result["cells"]) == 5
    assert {one["outcome"] for one in result["cells"]} == {"ok"}
    assert result["unlike"] == []
    assert "skipped: none" in done.stdout


def test_results_of_several_runs_make_one_report(bench, tmp_path, monkeypatch, capsys):
    """The second run's TRL is held against the first run's ours, of which one ran out of memory."""
    common = {"seconds": 2.0, "tokens_per_second": 16384.0, "mfu": 0.5, "of_limit": 0.75}
    common |= {"pinned_bytes": 2e9, "levers": {"offload": "none"}}
    ours = row("8b/32k/one/ours", **common)
    trl = row("8b/32k/one/trl", **{**common, "tokens_per_second": 8192.0})
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    files[0].write_text(json.dumps({"ceilings": {}, "cells": [ours]}))
    files[1].write_text(
        json.dumps({"ceilings": {}, "cells": [trl, row("8b/8k/one/hf", outcome="oom")]})
    )
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", "--report", *map(str, files)])
    assert bench.main() == 0
    told = capsys.readouterr().out
    assert "| `8b/32k/one/ours` | 2.00 | 16,384 | 50.0% | 75% |  | 2.0 GB |  |" in told
    assert "| `8b/8k/one/hf` | oom | | | | | | |" in told
    assert "- met: 8b_32k_over_trl 2, at least 1.2" in told
