"""What a bake-off and a search say in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.units import counted, format_length, format_seconds

WIDE = 130
"""Columns of a terminal that hold every length and both intervals."""


def comparison_table(result: dict[str, Any], width: int = WIDE) -> list[RenderableType]:
    """A row for each setting, best first; differences are on the samples that both have read.

    Below `WIDE` columns the target's losses are shown and one interval; the file holds all.
    """
    target, is_wide = str(result["target_length"]), width >= WIDE
    lengths = {task: _lengths(result, task) for task in ("nll", "needle-nll")}
    shown_lengths = {task: [n for n in found if is_wide or n == target]
                     for task, found in lengths.items()}  # fmt: skip
    heads = [
        "setting",
        "read",
        *(f"nll {format_length(int(n))}" for n in shown_lengths["nll"]),
        "minus best",
        "short context" if is_wide else "short",
        *(f"look-up {format_length(int(n))}" for n in shown_lengths["needle-nll"] if is_wide),
    ]
    shown = Table(*heads, box=None, padding=(0, 1, 0, 0))
    for place, column in enumerate(shown.columns):
        column.no_wrap, column.justify = place > 0, "left" if place == 0 else "right"
    for row in result["settings"]:
        short = row["short_context"]
        is_best = row is result["settings"][0]
        shown.add_row(
            escape(row["label"]),
            str(row["samples"]),
            *(_mean(row.get("nll", {}).get(n)) for n in shown_lengths["nll"]),
            "best" if is_best else _difference(row["minus_best"]),
            _difference(short) if is_wide else f"{short['mean']:+.3f}" if short else "",
            *(_mean(row.get("needle-nll", {}).get(n)) for n in shown_lengths["needle-nll"]
              if is_wide),
        )  # fmt: skip
    native, target = (format_length(result[k]) for k in ("native_length", "target_length"))
    chosen = result["recommendation"]
    closing = (
        f"[bold]{escape(chosen['label'])}[/]: {escape(chosen['reason'])}"
        if chosen
        else "no two settings were compared"
    )
    return [
        f"{native} → {target} tokens, without training; nats per token, 95 % intervals over "
        f"documents; read: samples at {target}; short: within the native window, minus the base",
        shown,
        f"\n{closing}",
        f"took {format_seconds(result['seconds'])}, {result['read_tokens']:,} tokens read",
    ]


def _lengths(result: dict[str, Any], task: str) -> list[str]:
    """At which any setting was read, rising."""
    found = {int(n) for row in result["settings"] for n in row.get(task, {})}
    return [str(n) for n in sorted(found)]


def _mean(score: dict[str, Any] | None) -> str:
    return f"{score['mean']:.3f}" if score else ""


def _difference(score: dict[str, Any] | None) -> str:
    if not score:
        return ""
    if score["clusters"] < 2:
        return f"{score['mean']:+.3f}"
    return f"{score['mean']:+.3f} \\[{score['ci_low']:+.3f}, {score['ci_high']:+.3f}]"


def _others(result: dict[str, Any]) -> str:
    """What the proof was read on; look-ups lie in whatever text there is."""
    count = result["held_out"]["samples"]
    if result["fitness"] == "nll":
        return f"{counted(count, 'document')} that the search has not read"
    return f"{counted(count, 'prompt')} with other numbers (their text may be the same)"


def search_text(result: dict[str, Any]) -> list[RenderableType]:
    """The best table, its seed, and whether the proof holds."""
    best, seed, proof = result["best"], result["best_seed"], result["held_out"]
    verdict = "better" if result["improved"] else "not shown to be better"
    return [
        f"{len(result['trials'])} tables on "
        f"{counted(len(result['fitness_documents']), 'sample')}: best "
        f"{best['loss']:.4f} nats ({escape(best['origin'])}), best seed {seed['loss']:.4f} "
        f"({escape(seed['origin'])})",
        f"on {_others(result)}: {proof['best']:.4f} against "
        f"{proof['seed']:.4f}, {_difference(proof['minus_seed'])}: [bold]{verdict}[/] than "
        f"{escape(seed['origin'])}",
        f"within the native window it costs {_difference(result['short_context']['best'])} against "
        f"the base, its seed {_difference(result['short_context']['seed'])}",
        "divisors: " + " ".join(f"{factor:.3g}" for factor in best["factors"]),
        f"attention factor: {best['attention_factor']:.4f}",
        f"took {format_seconds(result['seconds'])}, {result['read_tokens']:,} tokens read",
    ]
