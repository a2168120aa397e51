"""A LoRA step on one GPU against the card's own ceilings, transformers' Trainer and TRL.

    python scripts/bench_gpu.py --plan quick --out gpu.json         # 4 min: every path, small
    python scripts/bench_gpu.py --plan full --out gpu.json          # 9 min and a half
    python scripts/bench_gpu.py --longest 256k 400k --out long.json # one step each, host memory
    python scripts/bench_gpu.py --cells ceilings 8b/32k/one/ours:checkpointing=full
    python scripts/bench_gpu.py --plan full --list                  # the cells and their seconds
    python scripts/bench_gpu.py --report gpu.json long.json         # found before, as Markdown

Random weights of Llama-3.1-8B (`8b`) and Llama-3.2-1B (`1b`) in bfloat16, rank 16 on all linears,
one window a step; `scripts/gpu_cells.py` says how a cell is named, `scripts/gpu_paths.py` what it
does. The first cell measures the ceilings of the card: products, attention by kernel, copies; every
step is held against them (`scripts/gpu_figures.py`). Each cell is a fresh process with a time limit
of its own; those that do not fit into --budget any more are skipped and named. Memory that runs out
is a result. The JSON is written anew after every cell; 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import gpu_ceilings
import gpu_figures
import gpu_paths
from gpu_cells import Cell, Process

KEPT = "checkpointing=attention"
BEST = "checkpointing=selective,kernel=cudnn"
TILES = "projection_tile=4096,head_groups=4,mlp_tile=4096,loss_chunk=1024"
AHEAD = {"cuda": 2, "cpu": 0}
"""Processes that import while a cell is measured."""
LIMITS = {"quick": 240.0, "full": 560.0, "longest": 560.0, "tiny": 300.0}
PLANS = {
    "quick": [
        "ceilings:trials=8b+1b",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=attention",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=full,mlp_tile=4096,loss_chunk=1024",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=attention,offload=host",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=attention,attention_kernel=flash",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=attention,fused_layers=off",
        "8b/8k/one/ours:layers=4,steps=2,checkpointing=none",
        "8b/8k/packed/ours:layers=4,steps=2,checkpointing=attention",
        "8b/8k/one/hf:layers=4,steps=2",
        "8b/8k/packed/hf:layers=4,steps=2",
        "8b/8k/one/trl:layers=4,steps=2",
        f"8b/8k/one/trl:layers=4,steps=2,{BEST}",
        f"8b/8k/one/trl:layers=4,steps=2,{BEST},offload=host",
        "8b/8k/packed/trl:layers=4,steps=2,checkpointing=selective",
        f"1b/8k/one/ours:{KEPT}",
        "1b/8k/one/trl",
        "8b/8k/one/hf:layers=4,steps=2,liger=1,kernel=cudnn",
        f"8b/8k/one/trl:layers=4,steps=2,{BEST},liger=1",
        "8b/8k/packed/hf:layers=4,steps=2,kernel=flex",
    ],
    "full": [
        "ceilings:trials=8b+1b",
        f"8b/32k/one/ours:{KEPT}",
        f"8b/32k/one/trl:{BEST}",
        "8b/32k/one/hf:steps=1",
        f"8b/32k/packed/ours:{KEPT}",
        "8b/32k/packed/hf:steps=1,warm=2",
        f"8b/8k/one/ours:{KEPT}",
        f"8b/8k/one/trl:{BEST}",
        f"8b/128k/one/ours:{KEPT},offload=host",
        f"8b/32k/one/trl:{BEST},liger=1",
        "8b/32k/one/trl:steps=1",
        f"8b/32k/one/ours:{KEPT},whole_layers=8",
        f"8b/128k/one/ours:checkpointing=full,{TILES}",
        f"8b/128k/one/ours:checkpointing=full,offload=host,{TILES}",
        "8b/128k/one/ours:checkpointing=full",
        f"8b/128k/one/trl:{BEST}",
        f"8b/128k/one/ours:{KEPT}",
        "8b/8k/one/hf",
        "1b/32k/one/ours:checkpointing=attention",
        f"1b/32k/one/trl:{BEST}",
        "1b/128k/one/ours:checkpointing=attention",
        f"1b/128k/one/trl:{BEST}",
        "1b/8k/one/ours:checkpointing=attention",
        f"1b/8k/one/trl:{BEST}",
        "8b/32k/packed/hf:kernel=flex,warm=2",
        "8b/32k/one/hf:liger=1,steps=1",
    ],
    "longest": ["ceilings:trials=8b", "8b/256k/one/ours:levers=plan"],
    "tiny": [
        "ceilings:trials=tiny",
        f"tiny/256/one/ours:{KEPT}",
        "tiny/256/one/hf",
        "tiny/256/packed/ours:checkpointing=full,mlp_tile=64,loss_chunk=32",
        "tiny/256/one/ours:checkpointing=full,projection_tile=64,mlp_tile=64,loss_chunk=32",
        "tiny/256/packed/hf",
    ],
}
"""Cells in order of importance; what an H100 cannot hold comes late."""


def main() -> int:
    """Measure what fits into the budget, print a table, write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.worker:
        _answer(options.worker, options.device)
        return 0
    if options.report:
        print(_report([json.loads(file.read_text(encoding="utf-8")) for file in options.report]))
        return 0
    cells = cells_of(options)
    if options.list:
        for cell in cells:
            print(f"{gpu_figures.expected_seconds(cell, None):6.0f} s  {cell.name}")
        return 0
    if options.device == "cuda" and not _has_gpu():
        print("no CUDA device here: run it where there is one, or `--device cpu --plan tiny`")
        return 2
    result = measure_all(options, cells)
    print(gpu_figures.table(result["cells"]))
    print(gpu_figures.ceiling_lines(result["ceilings"]))
    for sentence in result["unlike"]:
        print(f"unlike: {sentence}")
    for line in _goal_lines(result["goals"]):
        print(line)
    print(f"skipped: {', '.join(result['skipped']) or 'none'}; {result['seconds']:.0f} s in all")
    return 0 if all(goal["ok"] for goal in result["goals"].values()) else 1


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _answer(path: str, device: str) -> None:
    """The body of a cell's process: import, read the cell, print its figures as the last line."""
    gpu_paths.import_all(path)
    cell = Cell.named(json.loads(sys.stdin.readline())["cell"])
    measure = gpu_ceilings.measure if path == "ceilings" else gpu_paths.measure
    found = measure(cell, device)
    print("\n" + json.dumps(found), flush=True)
    sys.stderr.flush()
    os._exit(0)  # the device's memory is free at once, not after all objects of a trainer


def _report(results: list[dict[str, Any]]) -> str:
    """Ceilings, cells and goals of several results, as Markdown."""
    rows = [row for result in results for row in result["cells"]]
    ceilings = dict.fromkeys(
        gpu_figures.ceiling_lines(result["ceilings"]) for result in results if result["ceilings"]
    )
    unlike = [f"- unlike: {sentence}" for sentence in gpu_figures.gates(rows)]
    goals = _goal_lines(gpu_figures.goals(rows))
    parts = [gpu_figures.markdown(rows), "\n".join([*unlike, *(f"- {line}" for line in goals)])]
    return "\n\n".join([*(f"```\n{told}\n```" for told in ceilings), *parts])


def _goal_lines(goals: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{'met' if goal['ok'] else 'MISSED'}: {name} {goal['found']:.4g}, "
        + (f"at least {goal['needed']}" if "needed" in goal else f"at most {goal['allowed']}")
        for name, goal in goals.items()
    ]


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """What the options ask for, in order."""
    if options.cells:
        names = options.cells
    elif options.longest:
        places = [f"8b/{size}/one/ours:{options.levers}" for size in options.longest]
        names = ["ceilings:trials=8b", *places]
    else:
        names = PLANS[options.plan]
    return [Cell.named(name) for name in names]


def measure_all(options: argparse.Namespace, cells: list[Cell]) -> dict[str, Any]:
    """Every cell that fits, in order; the next ones' processes start while one is measured."""
    started = time.monotonic()
    result: dict[str, Any] = {
        "settings": _settings(options),
        "ceilings": {},
        "cells": [],
        "skipped": [],
    }
    waiting: dict[int, Process] = {}
    try:
        for number, cell in enumerate(cells):
            for later in range(number, min(number + 1 + options.ahead, len(cells))):
                if later not in waiting:
                    waiting[later] = _start(options, cells[later])
            process = waiting[number]
            left = options.budget - (time.monotonic() - started)
            expected = gpu_figures.expected_seconds(cell, result["ceilings"])
            if options.device == "cuda" and expected > left:
                process.stop()
                result["skipped"].append(cell.name)
                print(f"skipped, {expected:.0f} s of {left:.0f} s: {cell.name}", flush=True)
                continue
            slack = 30 if options.device == "cuda" else 300
            limit = min(left, float(cell.settings.get("limit", 2 * expected + slack)))
            found = process.measure(cell, limit)
            _note(result, cell, found)
            result["seconds"] = time.monotonic() - started
            _write(options, result)
    finally:
        for process in waiting.values():
            process.stop()
    result["seconds"] = time.monotonic() - started
    result["unlike"] = gpu_figures.gates(result["cells"])
    result["goals"] = gpu_figures.goals(result["cells"])
    _write(options, result)
    return result


def _start(options: argparse.Namespace, cell: Cell) -> Process:
    return Process(__file__, cell.path, options.device, options.alloc)


def _note(result: dict[str, Any], cell: Cell, found: dict[str, Any]) -> None:
    """Add a finished cell, and say so."""
    if cell.path == "ceilings":
        result["ceilings"] = found
        print(gpu_figures.ceiling_lines(found), found.get("told", "")[-900:], flush=True)
        return
    names = {"name": cell.name, "work": cell.work, "path": cell.path, "settings": cell.settings}
    row = {**names, **gpu_figures.figures(cell, found, result["ceilings"])}
    result["cells"].append(row)
    print(gpu_figures.table([row]).splitlines()[-1], f"({found['spent']:.0f} s)", flush=True)
    if "told" in found:
        print("    " + found["told"].strip()[-600:].replace("\n", "\n    "), flush=True)


def _write(options: argparse.Namespace, result: dict[str, Any]) -> None:
    if options.out:
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        temporary.replace(options.out)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "liger-kernel")
    have = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return {
        "device": options.device,
        "budget": options.budget,
        "alloc": options.alloc,
        "rank": 16,
        "versions": {name: have.get(name, "-") for name in names},
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plan", choices=PLANS, default="quick")
    parser.add_argument("--cells", nargs="+", help="these instead of a plan's")
    parser.add_argument("--longest", nargs="+", metavar="LENGTH", help="one step of each window")
    parser.add_argument("--levers", default="levers=plan", help="of --longest")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--budget", type=float, help="seconds for all; default: as the plan has")
    parser.add_argument("--alloc", default="expandable_segments:True", help="PYTORCH_ALLOC_CONF")
    parser.add_argument("--out", type=Path, help="the JSON, written anew after every cell")
    parser.add_argument("--list", action="store_true", help="cells and expected seconds, no more")
    parser.add_argument("--report", nargs="+", type=Path, help="print these JSON files, no more")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.budget = options.budget or LIMITS["longest" if options.longest else options.plan]
    options.ahead = AHEAD[options.device]
    return options


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and end what was started
    sys.exit(main())
