"""Every benchmark as a job with a quick and a full form, run one after the other and remembered.

    python scripts/bench_jobs.py --quick [--only NAME] [--again] [--no-write]

A job is a script with options. What it printed, its command, time and date lie in
build/bench/SET/NAME.json; a job whose command and code are the same as there is not run again, so
a run that was stopped goes on. Jobs whose input is missing (--data, --model, a GPU) are left out by
name. The part of docs/benchmarks.md between the marks of the set is written anew from these files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_cells import ROOT, revision
from bench_summary import write_summary

FOLDER = ROOT / "build" / "bench"


@dataclass(frozen=True)
class Job:
    """A benchmark; `{data}`, `{model}`, `{peers}` and `{cells}` stand for what the user gives and
    where its own ledger lies, `{gpu}` for a GPU that is there."""

    name: str
    script: str
    quick: str
    full: str
    needs_gpu: bool = False
    """Though its options do not name one."""

    def command(self, is_quick: bool, given: dict[str, str]) -> list[str] | None:
        """Its words; None where an input is missing. `--peers {peers}` falls away without one."""
        options = self.quick if is_quick else self.full
        if "peers" not in given:
            options = options.replace("--peers {peers}", "")
        if self.needs_gpu and "gpu" not in given:
            return None
        try:
            return [str(ROOT / "scripts" / self.script), *shlex.split(options.format(**given))]
        except KeyError:
            return None


JOBS = (
    Job("attention", "bench_attention.py", "--lengths 1024 --rounds 1", ""),
    Job(
        "train",
        "bench_train.py",
        "--models d256-v32k --lengths 2048 --rounds 1 --steps 1 --cells {cells} --peers {peers}",
        "--cells {cells} --peers {peers}",
    ),
    Job("gpu", "bench_gpu.py", "--device {gpu} --plan quick", "--device {gpu} --plan full"),
    Job(
        "gpu-plan",
        "bench_plan_gpu.py",
        "--only 8b/8k --cells {cells}",
        "--cells {cells}",
        needs_gpu=True,
    ),
    Job("scaling", "bench_scaling.py", "--layers 1 --rounds 1 --steps 1", ""),
    Job("plan", "bench_plan.py", "--only 'd256 2048' --cells {cells}", "--cells {cells}"),
    Job(
        "eval",
        "bench_eval.py",
        "--sections memory --long 1024 --rounds 1",
        "--model {model}",
    ),
    Job(
        "generate",
        "bench_generate.py",
        "--lengths 512 --rounds 1 --new 8 --paths giraffe,transformers",
        "--model {model}",
    ),
    Job(
        "pack",
        "bench_pack.py",
        "compare --data {stdlib} --tokenizer {calf} --megabytes 2 --rounds 1 --peers {peers}",
        "compare --data {data} --tokenizer {model} --peers {peers}",
    ),
    Job(
        "pack-memory",
        "bench_pack.py",
        "memory --data {stdlib} --tokenizer {calf} --megabytes 2 --rounds 1",
        "memory --data {data} --tokenizer {model} --megabytes 30 300 3000",
    ),
)


def main(arguments: Sequence[str] | None = None, jobs: Sequence[Job] = JOBS) -> int:
    options = _options(arguments, jobs)
    if options.list:
        print("\n".join(job.name for job in jobs))
        return 0
    folder = options.folder / ("quick" if options.quick else "full")
    folder.mkdir(parents=True, exist_ok=True)
    failed = []
    for job in jobs:
        if options.only and job.name not in options.only:
            continue
        command = job.command(options.quick, _given(options, folder, job))
        if command is None:
            print(f"{job.name}: left out, needs {_lacking(job)}", file=sys.stderr)
        elif not _run(job, command, folder, options.again):
            failed.append(job.name)
    if not options.no_write:
        _write(options, folder, jobs)
    if failed:
        print(f"ended without a result: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _write(options: argparse.Namespace, folder: Path, jobs: Sequence[Job]) -> None:
    """A part of the results would push the rest out of the page."""
    asked = [job for job in jobs if job.command(options.quick, _given(options, folder, job))]
    lacking = [job.name for job in asked if not (folder / f"{job.name}.json").exists()]
    if lacking:
        told = f"{options.docs} is left alone: no result yet of {', '.join(lacking)}"
        print(told, file=sys.stderr)
        return
    write_summary(folder, options.docs, [job.name for job in jobs])


def _run(job: Job, command: list[str], folder: Path, again: bool) -> bool:
    """Whether there is a result; a goal that was missed is one."""
    file, out = folder / f"{job.name}.json", folder / f"{job.name}.out.json"
    key = {"command": _shown(command), "revision": _revision(command[0])}
    if not again and file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if {name: known.get(name) for name in key} == key:
            print(f"{job.name}: stands since {known['date']}", file=sys.stderr)
            return True
    print(f"{job.name}: {key['command']}", file=sys.stderr)
    out.unlink(missing_ok=True)
    started, used = time.time(), _children()
    done = subprocess.run(
        [sys.executable, *command, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        env={"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if not out.exists():
        return False
    record: dict[str, Any] = {
        **key,
        "date": datetime.date.today().isoformat(),
        "seconds": time.time() - started,
        "cpu_seconds": _children() - used,
        "goals_met": done.returncode == 0,
        "result": json.loads(out.read_text(encoding="utf-8")),
    }
    out.unlink()
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)
    return True


def _given(options: argparse.Namespace, folder: Path, job: Job) -> dict[str, str]:
    """What stands for the names in a job's options."""
    given = {
        "cells": str(folder / f"{job.name}.cells.jsonl"),
        "calf": str(ROOT / "giraffe_cli" / "calf"),
        **{name: getattr(options, name) for name in ("data", "model", "peers")},
    }
    if shutil.which("nvidia-smi"):
        given["gpu"] = "cuda"
    if "{stdlib}" in (job.quick if options.quick else job.full):
        given["stdlib"] = str(_standard_library(options.folder / "python-stdlib.jsonl"))
    return {name: value for name, value in given.items() if value is not None}


def _lacking(job: Job) -> str:
    """What a job may be left out for."""
    is_gpu = job.needs_gpu or "{gpu}" in job.quick
    return "a GPU" if is_gpu else "--data or --model"


def _standard_library(path: Path) -> Path:
    """Python's own sources, 2 MB of them, as JSON lines."""
    if not path.exists():
        library = Path(os.__file__).parent
        texts = (file.read_text(encoding="utf-8", errors="replace") for file in
                 sorted(library.glob("*.py")))  # fmt: skip
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _revision(script: str) -> str:
    """Of what is measured and what measures it."""
    shared = (ROOT / "scripts" / name for name in ("bench_cells.py", "train_paths.py"))
    return revision(ROOT / "giraffe_cli", Path(script), *shared)


def _shown(command: list[str]) -> str:
    """As a reader would type it."""
    words = [word.replace(f"{ROOT}/", "") for word in command]
    return shlex.join(["python", *words])


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _options(arguments: Sequence[str] | None, jobs: Sequence[Job]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, minutes in all")
    parser.add_argument("--only", nargs="+", choices=[job.name for job in jobs])
    parser.add_argument("--again", action="store_true", help="also what has finished before")
    parser.add_argument("--list", action="store_true", help="the names, and nothing else")
    parser.add_argument("--data", help=".jsonl or .jsonl.gz with `text`, of the full set")
    parser.add_argument("--model", help="a model directory, of the full set")
    parser.add_argument("--peers", help="python that has trl, peft, datasets and datatrove")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where results wait")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--no-write", action="store_true", help="leave the documentation alone")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
