"""A run's report on the scores of `synthetic_results`, its folder, and how its page is read."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

from synthetic_results import make_results

YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 1024}


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
        **{
            task: {
                "base": results["models"]["base"]["tasks"][task],
                "extended": results["models"]["checkpoint"]["tasks"][task],
            }
            for task in ("nll", "passkey")
        },
        "short_context": results["short_context"],
        "evaluation": results,
        "gates": [
            {
                "name": "nll@16384-nll@1024",
                "op": "<=",
                "bound": -0.04,
                "threshold": 0.05,
                "ok": True,
            },
            {
                "name": "short_context.delta_nll",
                "op": "<=",
                "bound": 0.018,
                "threshold": 0.05,
                "ok": True,
            },
        ],
        "seconds": {"pack": 4.1, "train": 148.2, "merge": 1.3, "verify": 9.8, "eval": 71.0},
        "warnings": [],
    }


def make_run(run_dir: Path) -> dict:
    """A run folder with what the stages before the report leave; the report."""
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
    (run_dir / "base").mkdir()
    (run_dir / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# calf\n")
    plan = {"model": {"path": str(run_dir / "base")}}
    (run_dir / "plan.json").write_text(json.dumps(plan))
    return make_report(run_dir, make_results())


VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Every tag with its attributes; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"
