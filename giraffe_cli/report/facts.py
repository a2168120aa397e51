"""The table, corpora, times and files of a run as rows of text, for the page and the card.

rope.json with 16 pairs  →  `16 pairs: 5 unchanged, 4 slowed by 16, 7 by 1.1 to 12`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.units import format_bytes, format_length, format_seconds

Row = tuple[str, str]

_CONTENTS = {
    "model/": "the extended checkpoint: config, tokenizer, safetensors, model card",
    "adapter/": "what was trained: the adapter, or every weight, with rope.json inside",
    "packed/": "training windows and their statistics",
    "checkpoints/": "states a stopped run resumes from",
    "stages/": "the shorter targets that were trained first",
    "control/": "the control run: trained without length, for comparison",
    "eval/": "results.json, samples.jsonl and these plots as PNG and SVG",
    "run.yaml": "the fully resolved config",
    "plan.json": "what was predicted before the run",
    "rope.json": "the RoPE table, number by number",
    "rope_choice.json": "the tables that were compared, and the one that was chosen",
    "tune/": "what was read of them, for a comparison that goes on",
    "metrics.jsonl": "one line for each training step",
    "timings.json": "seconds by stage",
    "verify.json": "every check of the written directory",
    "report.json": "everything on this page, for programs",
    "report.html": "this page",
}


def rope_rows(report: Mapping[str, Any], table: Mapping[str, Any]) -> list[Row]:
    """The RoPE settings; `table` is the content of `rope.json`, empty when there is none."""
    rope = {**report.get("rope", {}), **table}
    parameters = rope.get("rope_parameters", {})
    rows = [("strategy", str(report["strategy"]))]
    rows += [(name, value_text(value)) for name, value in rope.get("knobs", {}).items()]
    if "rope_theta" in rope:
        rows.append(("rope_theta of the base", f"{rope['rope_theta']:,.0f}"))
    rows.append(("written as rope_type", str(parameters.get("rope_type", "default"))))
    if "rope_theta" in parameters:
        rows.append(("rope_theta", f"{parameters['rope_theta']:,.0f}"))
    factor = report["target_length"] / report["native_length"]
    rows.append(("target / native window", f"{factor:g}"))
    if "attention_factor" in rope:
        rows.append(("attention factor", f"{rope['attention_factor']:.4f}"))
    if rope.get("inv_freq"):
        rows.append(("table", describe_table(rope)))
    return rows


def describe_table(rope: Mapping[str, Any]) -> str:
    """How many rotary pairs kept their speed, how many were slowed the most, and the others."""
    head_dim, theta = rope["head_dim"], rope["rope_theta"]
    slowed = [
        theta ** (-2 * pair / head_dim) / value for pair, value in enumerate(rope["inv_freq"])
    ]
    most = max(slowed)
    unchanged = [ratio for ratio in slowed if math.isclose(ratio, 1, rel_tol=1e-6)]
    fully = [ratio for ratio in slowed if math.isclose(ratio, most, rel_tol=1e-6)]
    between = sorted(set(slowed) - {*unchanged, *fully})
    parts = [f"{len(unchanged)} unchanged"]
    if len(unchanged) < len(slowed):
        parts.append(f"{len(fully)} slowed by {most:.3g}")
    if between:
        count = len(slowed) - len(unchanged) - len(fully)
        ends = dict.fromkeys(f"{end:.3g}" for end in (between[0], between[-1]))
        parts.append(f"{count} by {' to '.join(ends)}")
    return f"{len(slowed)} pairs: {', '.join(parts)}"


def data_rows(report: Mapping[str, Any], stats: Mapping[str, Any]) -> list[Row]:
    """Corpora, seed and type; `stats` is the packing's `stats.json`, empty when nothing was."""
    rows = [("corpora", value_text(report.get("data", [])))]
    for name in ("documents", "tokens_kept", "windows"):
        if name in stats:
            rows.append((name.replace("_", " "), f"{stats[name]:,}"))
    if "long_share" in stats and "window" in stats:
        window = format_length(stats["window"])
        rows.append((f"tokens in documents of {window} or more", f"{stats['long_share']:.0%}"))
    rows.append(("seed", str(report.get("seed", "not recorded"))))
    if "dtype" in report:
        rows.append(("computed in", str(report["dtype"])))
    return rows


def stage_rows(report: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """`(stage, time, share of the whole)` in the order they ran."""
    seconds = {name: spent for name, spent in report.get("seconds", {}).items() if name != "total"}
    total = sum(seconds.values()) or 1.0
    return [(name, format_seconds(spent), spent / total) for name, spent in seconds.items()]


def total_seconds(report: Mapping[str, Any]) -> float:
    """All stages together."""
    seconds = report.get("seconds", {})
    return float(seconds.get("total", sum(seconds.values())))


def file_rows(run_dir: Path) -> Iterator[tuple[str, str, str]]:
    """`(name, size, content)` of what lies in `run_dir`; folders end in `/`."""
    for name, content in _CONTENTS.items():
        path = run_dir / name
        if name in ("report.json", "report.html"):
            yield name, "", content
        elif path.is_dir():
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            yield name, format_bytes(size), content
        elif path.is_file():
            yield name, format_bytes(path.stat().st_size), content


def value_text(value: Any) -> str:
    """A setting as people read it: `yes`, `a, b`, `0.1`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(entry) for entry in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
