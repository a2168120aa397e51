"""scripts/bench_all: jobs are remembered, results become a table, the rest of a page stays."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
STUB = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--out", type=pathlib.Path)
parser.add_argument("--found", type=float, default=2.0)
parser.add_argument("--log", type=pathlib.Path)
options = parser.parse_args()
with options.log.open("a") as handle:
    handle.write("ran\\n")
if options.found < 0:
    raise SystemExit("broken")
met = options.found <= 3
goal = {"found": options.found, "allowed": 3.0, "ok": met}
options.out.write_text(json.dumps({"goals": {"times_slower": goal}}))
sys.exit(0 if met else 1)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """The module, and a folder with a benchmark that takes no time."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("bench_jobs")
    yield module
    for name in ("bench_jobs", "bench_summary", "bench_cells"):
        sys.modules.pop(name, None)


@pytest.fixture
def run(jobs, tmp_path, capsys):
    (tmp_path / "stub.py").write_text(STUB)
    docs = tmp_path / "benchmarks.md"
    docs.write_text("# Benchmarks\n\nBefore.\n")

    def start(*arguments: str, found: float = 2.0) -> tuple[int, str]:
        options = f"--log {tmp_path / 'log'} --found {found}"
        job = jobs.Job("stub", str(tmp_path / "stub.py"), options, f"{options} --data {{data}}")
        folder = ("--folder", str(tmp_path / "bench"), "--docs", str(docs))
        return jobs.main([*folder, *arguments], [job]), docs.read_text()

    start.times = lambda: (tmp_path / "log").read_text().count("ran")
    return start


def test_a_job_runs_once_until_it_is_asked_for_again(run):
    assert run("--quick")[0] == 0
    code, page = run("--quick")
    assert (code, run.times()) == (0, 1)
    assert "| stub | times slower | 2 | at most 3: met |" in page
    run("--quick", "--again")
    assert run.times() == 2


def test_another_command_is_another_job_and_replaces_its_part_alone(run, tmp_path):
    run("--quick")
    (tmp_path / "benchmarks.md").write_text((tmp_path / "benchmarks.md").read_text() + "\nAfter.\n")
    code, page = run("--quick", found=4.0)
    assert (code, run.times()) == (0, 2)
    assert "| stub | times slower | 4 | at most 3: **missed** |" in page
    assert page.startswith("# Benchmarks\n\nBefore.\n\n## Every benchmark, run again\n")
    assert page.endswith("After.\n")
    assert page.count("bench_all quick: begin") == page.count("| stub |") == 1


def test_a_broken_benchmark_is_named_and_keeps_no_result(run, capsys):
    code, page = run("--quick", found=-1.0)
    assert code == 1
    told = capsys.readouterr().err
    assert "ended without a result: stub" in told
    assert "is left alone: no result yet of stub" in told
    assert "| stub |" not in page


def test_a_missing_input_is_named(run, capsys):
    assert run("--no-write")[0] == 0
    assert "stub: left out, needs --data or --model" in capsys.readouterr().err


def test_every_benchmark_is_a_job(jobs):
    known = {path.name for path in SCRIPTS.glob("bench_*.py")}
    shared = {"bench_cells.py", "bench_jobs.py", "bench_summary.py"}
    assert {job.script for job in jobs.JOBS} == known - shared
    given = dict.fromkeys(("data", "model", "cells", "calf", "stdlib", "gpu"), "x")
    for job in jobs.JOBS:
        for is_quick in (True, False):
            assert "--peers" not in job.command(is_quick, given)
            assert ("--peers" in job.command(is_quick, {**given, "peers": "p"})) == (
                "{peers}" in (job.quick if is_quick else job.full)
            )


def test_the_page_of_figures_holds_the_quick_set():
    text = (SCRIPTS.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    part = text.split("<!-- bench_all quick: begin -->")[1].split("<!-- bench_all quick: end -->")[
        0
    ]
    assert len([line for line in part.splitlines() if line.startswith("- ")]) >= 6
