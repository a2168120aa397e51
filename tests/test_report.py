"""The report: verdicts by interval bounds, a page that needs nothing, one table everywhere."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from giraffe_cli.errors import InvalidInput
from giraffe_cli.report import facts, scores
from giraffe_cli.report.plots import make_plots
from giraffe_cli.report.serve import serve_lines
from giraffe_cli.report.tables import summary_table
from giraffe_cli.report.verdicts import verdicts
from giraffe_cli.report.write import write_report

LENGTHS = [1024, 2048, 4096, 8192, 16384]
BASE_NLL = [3.00, 3.21, 3.78, 4.31, 4.60]
EXTENDED_NLL = [3.00, 2.985, 2.97, 2.96, 2.95]
BASE_FOUND = [20, 6, 0, 0, 0]
EXTENDED_FOUND = [20, 20, 19, 19, 18]
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1024}


def score(mean: float, half: float, n: int = 32) -> dict:
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "n": n}


def share(found: int, n: int = 20) -> dict:
    from giraffe_cli.evals.statistics import wilson

    return dict(wilson(found, n))


def by_length(values: list) -> dict:
    return {str(length): value for length, value in zip(LENGTHS, values, strict=True)}


def depths(found: list[int]) -> dict:
    """20 trials at 10 depths, two each; what is missed is missed in the middle first."""
    order = [4, 5, 3, 6, 2, 7, 1, 8, 0, 9] * 2
    cells = {}
    for length, hits in zip(LENGTHS, found, strict=True):
        missed = order[: 20 - hits]
        cells[str(length)] = {
            f"{depth / 9:.4f}": share(2 - missed.count(depth), 2) for depth in range(10)
        }
    return cells


def make_results() -> dict:
    nested = {
        "base": by_length([score(nll - 3.0, 0.02 if nll > 3 else 0.0) for nll in BASE_NLL]),
        "checkpoint": by_length([score(nll - 3.0, 0.01 if nll < 3 else 0) for nll in EXTENDED_NLL]),
    }
    minus_base = [score(e - b + 0.01, 0.008) for e, b in zip(EXTENDED_NLL, BASE_NLL, strict=True)]
    return {
        "schema_version": 1,
        "seed": 0,
        "models": {
            "base": {"passkey_by_depth": depths(BASE_FOUND)},
            "checkpoint": {"passkey_by_depth": depths(EXTENDED_FOUND)},
        },
        "paired": {
            "nll": {"checkpoint_minus_base": by_length(minus_base), "length_minus_native": nested}
        },
        "short_context": {"delta_nll": minus_base[0]},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "warnings": ["passkey: 2 trials a depth, single cells say little"],
    }


def make_report(run_dir: Path, results: dict) -> dict:
    def checked(found: object, expected: object) -> dict:
        return {"ok": True, "found": found, "expected": expected}

    return {
        "run_dir": str(run_dir),
        "model_dir": str(run_dir / "model"),
        "model": "calf",
        "strategy": "yarn",
        "native_length": 1024,
        "target_length": 16384,
        "steps": 60,
        "trained_tokens": 1966080,
        "final_loss": 2.913,
        "peak_memory_bytes": 1_430_000_000,
        "seed": 0,
        "dtype": "float32",
        "data": ["python-stdlib"],
        "window": 16384,
        "positions": "plain",
        "rope": {"strategy": "yarn", "knobs": {"beta_fast": 32.0, "beta_slow": 1.0}},
        "train": {
            "learning_rate": 2e-4,
            "schedule": "cosine",
            "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        },
        "verify": {
            "ok": True,
            "checks": {
                "weights": checked("39 tensors equal", "39 tensors equal"),
                "inv_freq": checked(0.0, 1e-6),
                "attention_factor": checked(1.2773, 1.2773),
                "logits_at_end": checked(3.1e-6, 1e-4),
            },
            "runtimes": {"transformers": "exact", "llama.cpp": "exact after conversion"},
        },
        "nll": {
            "base": by_length([score(nll, 0.06) for nll in BASE_NLL]),
            "extended": by_length([score(nll, 0.06) for nll in EXTENDED_NLL]),
        },
        "passkey": {
            "base": by_length([share(found) for found in BASE_FOUND]),
            "extended": by_length([share(found) for found in EXTENDED_FOUND]),
        },
        "short_context": results["short_context"],
        "differences": results["paired"],
        "gates": [],
        "seconds": {"pack": 4.1, "train": 148.2, "merge": 1.3, "verify": 9.8, "eval": 71.0},
        "warnings": [],
    }


def make_run(run_dir: Path) -> tuple[dict, dict]:
    """A run folder with what the stages before the report leave; (report, results)."""
    from giraffe_cli.rope.base import Head

    (run_dir / "model").mkdir(parents=True)
    config = {"max_position_embeddings": 16384, "rope_parameters": YARN, "dtype": "bfloat16"}
    (run_dir / "model" / "config.json").write_text(json.dumps(config))
    head = Head(32, 1e4, 1024, 16384)
    # The first 6 of 16 pairs as they were, the last 6 slowed by 16.
    slowed = [1] * 6 + [2, 4, 8, 12] + [16] * 6
    inv_freq = [w / s for w, s in zip(head.unscaled_inv_freq().tolist(), slowed, strict=True)]
    rope = {"head_dim": 32, "rope_theta": 1e4, "inv_freq": inv_freq, "attention_factor": 1.2773}
    (run_dir / "rope.json").write_text(json.dumps({**rope, "rope_parameters": YARN}))
    steps = [{"step": n, "loss": 3.1 + 0.4 / n + 0.05 * (n % 3)} for n in range(1, 61)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in steps))
    (run_dir / "run.yaml").write_text("target_length: 16384\n")
    results = make_results()
    return make_report(run_dir, results), results
