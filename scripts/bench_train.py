"""A LoRA training step against HF Trainer and TRL: the same weights, adapters, ids and labels.

    python scripts/bench_train.py --peers .venv-peers/bin/python --out train.json
    python scripts/bench_train.py --models d256-v32k --lengths 2048 --rounds 1      # a quick look

Rank 8 on all linear layers, every layer checkpointed, float32, OMP_NUM_THREADS threads (default 1).
Each window is one document, or seven (`packed`; s² = Σl²/S² is printed). TRL runs under the
interpreter --peers (torch, transformers, peft and trl installed there); without it TRL is left out.

    ours  train/setup.py: the model with its loss, clipped, AdamW, as in train/loop.py
    hf    transformers.Trainer, its own loss; packed rows carry position_ids, of which transformers
          makes the dense block mask for sdpa
    trl   SFTTrainer, its own loss; packed rows come from its own packing (`bfd`), which gives
          position_ids without a mask: on CPU the same dense block mask

Every cell is a fresh process, interleaved over --rounds. Timed are whole optimiser steps, the first
dropped; memory is the peak resident size at the end less what it was once the model was loaded. The
gate: loss and gradient norm of the first step, before any update, agree over the paths, or the run
ends there and says who differs. Finished cells wait in --cells and are not measured again as long
as code and versions are the same. Prints JSON; 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from bench_cells import (
    ROOT,
    THREADS,
    Ledger,
    add_cell_options,
    document_lengths,
    finish,
    goal,
    revision,
    run_cell,
    squared_share,
)
from train_paths import ALPHA, CELLS, MODELS, RANK

PATHS = ("ours", "hf", "trl")
DOCUMENTS = ("one", "packed")
LENGTHS = {
    "d256-v32k": (2048, 4096, 8192, 16384),
    "d256-v8k": (8192,),
    "smollm2-135m": (2048,),
    "tiny": (64, 128),
}
GATE = {"loss": (1e-3, 0.0), "grad_norm": (0.0, 1e-3)}
"""Absolute and relative difference allowed in the first step; sums of float32 differ by 1e-5."""


def main() -> int:
    """Measure what is missing, print and write the JSON; 1 when a goal is missed."""
    options = _options()
    if options.cell:
        cell = json.loads(options.cell)
        print(json.dumps(CELLS[cell["path"]](cell)))
        return 0
    cells = cells_of(options)
    with tempfile.TemporaryDirectory() as scratch:
        works = _works(measure_all(options, cells, Path(scratch)))
    result = {
        "settings": _settings(options),
        "works": works,
        "growth": growth(works),
        "goals": goals(works),
        "left_out": [] if options.peers else ["trl: no --peers"],
    }
    return finish(result, result["goals"], options.out)


# ── which cells, in which order ──────────────────────────────────────────────────────────────


def cells_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell once, the paths of the same work side by side."""
    cells = [
        {"model": model, "length": length, "documents": documents, "path": path}
        for model in options.models
        for length in options.lengths or LENGTHS[model]
        for documents in DOCUMENTS
        for path in PATHS
    ]
    return [cell for cell in cells if _is_wanted(cell, options)]


def _is_wanted(cell: dict[str, Any], options: argparse.Namespace) -> bool:
    """Of the small vocabulary only what shows ours to have no term in it; TRL up to 8k."""
    if cell["model"] == "d256-v8k" and (cell["path"], cell["documents"]) != ("ours", "one"):
        return False
    if cell["path"] == "trl" and (not options.peers or cell["length"] > 8192):
        return False
    return bool(re.search(options.only, name_of(cell)))


def name_of(cell: dict[str, Any]) -> str:
    """`d256-v32k/8192/packed/hf`."""
    return "/".join(str(cell[part]) for part in ("model", "length", "documents", "path"))


def measure_all(
    options: argparse.Namespace, cells: list[dict[str, Any]], scratch: Path
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(cell, its figures by round), each gated against the other paths of the same work."""
    ledger, runs = Ledger(options.cells), [(cell, []) for cell in cells]
    codes = {path: _code(path, options) for path in {cell["path"] for cell in cells}}
    first: dict[str, dict[str, dict[str, Any]]] = {}
    for number in range(options.rounds):
        for cell, found in runs:
            full = {**cell, **_conditions(options), "round": number, "code": codes[cell["path"]]}
            figures = ledger.get(full)
            is_new = figures is None
            if figures is None:
                python = options.peers if cell["path"] == "trl" else sys.executable
                adapters = _adapters(options, cell["model"], scratch)
                figures = run_cell(python, __file__, {**full, "adapters": adapters})
            same_work = first.setdefault(name_of({**cell, "path": ""}), {})
            gate(name_of(cell), figures, same_work)
            same_work.setdefault(cell["path"], figures)
            if is_new:
                ledger.add(full, figures)
            found.append(figures)
            print(f"{name_of(cell)}, round {number}: {figures}", file=sys.stderr)
    return runs


def gate(name: str, figures: dict[str, Any], others: dict[str, dict[str, Any]]) -> None:
    """Paths that train on different numbers are not comparable.

    Raises:
        SystemExit: loss or gradient norm of the first step differ by more than `GATE`.
    """
    for path, other in others.items():
        for what, (absolute, relative) in GATE.items():
            mine, theirs = figures[what][0], other[what][0]
            if not math.isclose(mine, theirs, abs_tol=absolute, rel_tol=relative):
                raise SystemExit(f"{name}: {what} of step 1 is {mine}, of {path} {theirs}")


def _adapters(options: argparse.Namespace, model: str, scratch: Path) -> str:
    """The file with the initial adapters of `model`, written when it is first asked for."""
    file = scratch / f"{model}.pt"
    if not file.exists():
        cell = {"path": "adapters", "model": model, "adapters": str(file)}
        run_cell(sys.executable, __file__, {**cell, **_conditions(options)})
    return str(file)


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    """What every cell of a run shares, and what its figures depend on."""
    malloc = {
        k: v for k, v in sorted(os.environ.items()) if k.startswith(("MALLOC_", "LD_PRELOAD"))
    }
    weights = str(options.model.resolve()) if options.model else ""
    return {"steps": options.steps, "threads": THREADS, "malloc": malloc, "weights": weights}


def _code(path: str, options: argparse.Namespace) -> str:
    """Versions of the libraries, and of ours the sources, so that a changed engine is measured."""
    measuring = Path(__file__), Path(__file__).with_name("train_paths.py")
    sources = revision(ROOT / "giraffe_cli", *measuring) if path == "ours" else ""
    return sources + json.dumps(_versions(options.peers if path == "trl" else sys.executable))


# ── the table ────────────────────────────────────────────────────────────────────────────────


def _works(runs: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """One entry a model, length and kind of window: medians of every path, ours over each."""
    works: dict[tuple[Any, ...], dict[str, Any]] = {}
    for cell, rounds in runs:
        key = (cell["model"], cell["length"], cell["documents"])
        lengths = document_lengths(cell["documents"], cell["length"])
        work = works.setdefault(
            key,
            {
                **{name: cell[name] for name in ("model", "length", "documents")},
                "seq_lengths": lengths,
                "s2": squared_share(lengths),
                "paths": {},
            },
        )
        work["paths"][cell["path"]] = _medians(rounds)
    for work in works.values():
        work["ours_over"] = _ratios(work["paths"])
    return list(works.values())


def _medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("cpu_seconds", "wall_seconds", "net_bytes", "base_bytes")
    spread = [figures["cpu_seconds"] for figures in rounds]
    return {
        **{name: statistics.median(figures[name] for figures in rounds) for name in names},
        "least_cpu_seconds": min(spread),
        "most_cpu_seconds": max(spread),
        "rounds": len(rounds),
        "loss": rounds[0]["loss"],
        "grad_norm": rounds[0]["grad_norm"],
        "attention": rounds[0]["attention"],
    }


def _ratios(paths: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    if "ours" not in paths:
        return {}
    names = ("cpu_seconds", "wall_seconds", "net_bytes")
    return {
        path: {name: paths["ours"][name] / found[name] for name in names}
        for path, found in paths.items()
        if path != "ours"
    }


def growth(works: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Between neighbouring lengths: bytes a token more costs, log-log slopes of time and memory."""
    rows = []
    for shorter in works:
        same = [
            work
            for work in works
            if (work["model"], work["documents"]) == (shorter["model"], shorter["documents"])
            and work["length"] > shorter["length"]
        ]
        if not same:
            continue
        longer = min(same, key=lambda work: work["length"])
        for path in shorter["paths"].keys() & longer["paths"].keys():
            few, many = shorter["paths"][path], longer["paths"][path]
            doublings = math.log2(longer["length"] / shorter["length"])
            more = many["net_bytes"] - few["net_bytes"]
            rows.append(
                {
                    **{name: shorter[name] for name in ("model", "documents")},
                    "path": path,
                    "lengths": [shorter["length"], longer["length"]],
                    "bytes_per_token": more / (longer["length"] - shorter["length"]),
                    "cpu_slope": math.log2(many["cpu_seconds"] / few["cpu_seconds"]) / doublings,
                    "memory_slope": math.log2(many["net_bytes"] / few["net_bytes"]) / doublings,
                }
            )
    return rows


def goals(works: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What was promised at 8k, what was found; a goal whose cells were not run is not listed."""
    at_8k = {
        work["documents"]: work["ours_over"]
        for work in works
        if (work["model"], work["length"]) == ("d256-v32k", 8192)
    }
    wanted = {
        "one_document_cpu_over_hf": ("one", "hf", "cpu_seconds", 0.9),
        "one_document_cpu_over_trl": ("one", "trl", "cpu_seconds", 0.45),
        "packed_cpu_over_hf": ("packed", "hf", "cpu_seconds", 0.4),
        "one_document_net_bytes_over_hf": ("one", "hf", "net_bytes", 0.3),
        "packed_net_bytes_over_hf": ("packed", "hf", "net_bytes", 0.3),
    }
    found = {
        name: goal(at_8k[documents][path][what], allowed)
        for name, (documents, path, what, allowed) in wanted.items()
        if path in at_8k.get(documents, {})
    }
    net = {
        work["model"]: work["paths"]["ours"]["net_bytes"]
        for work in works
        if (work["length"], work["documents"]) == (8192, "one") and "ours" in work["paths"]
    }
    if net.keys() >= {"d256-v32k", "d256-v8k"}:
        # logits_kept: float32 copies of all logits that 24,000 entries more would add
        found["bytes_per_token_v32k_over_v8k"] = {
            **goal(net["d256-v32k"] / net["d256-v8k"], 1.05),
            "bytes": {model: net[model] / 8192 for model in ("d256-v32k", "d256-v8k")},
            "logits_kept": (net["d256-v32k"] - net["d256-v8k"]) / (4 * 24000 * 8192),
        }
    return found


def _versions(python: str) -> dict[str, str]:
    """Of the libraries a peer consists of; `-` where one is missing."""
    ask = (
        "import importlib.metadata as m, json\n"
        "have = {d.name.lower(): d.version for d in m.distributions()}\n"
        "names = ('torch', 'transformers', 'peft', 'accelerate', 'datasets', 'trl')\n"
        "print(json.dumps({name: have.get(name, '-') for name in names}))"
    )
    found: dict[str, str] = json.loads(subprocess.check_output([python, "-c", ask], text=True))
    return found


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "shapes": {model: MODELS[model] for model in options.models},
        "rank": RANK,
        "alpha": ALPHA,
        **_conditions(options),
        "rounds": options.rounds,
        "versions": _versions(sys.executable),
        "peers": _versions(options.peers) if options.peers else None,
        "giraffe": metadata.version("giraffe-cli"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    shapes = [name for name in MODELS if name != "tiny"]
    parser.add_argument("--models", nargs="+", choices=MODELS, default=shapes)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens; default: as each model has")
    parser.add_argument("--only", default="", help="regular expression on d256-v32k/8192/packed/hf")
    parser.add_argument("--model", type=Path, help="SmolLM2's real weights instead of random ones")
    parser.add_argument("--peers", help="python that has trl, peft and datasets")
    parser.add_argument("--steps", type=int, default=2, help="timed steps a cell, after one more")
    parser.add_argument("--cells", type=Path, default=Path("bench_train.jsonl"), help="finished")
    add_cell_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
