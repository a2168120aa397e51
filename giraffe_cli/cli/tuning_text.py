"""What a bake-off and a search say in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.units import format_length, format_seconds


def comparison_table(result: dict[str, Any]) -> list[RenderableType]:
    """A row for each setting, best first; differences are on the samples that both have read."""
    lengths = sorted({int(n) for row in result["settings"] for n in row.get("nll", {})})
    needles = sorted({int(n) for row in result["settings"] for n in row.get("needle-nll", {})})
    heads = [
        "setting",
        "read",
        *(f"nll {format_length(n)}" for n in lengths),
        "minus best",
        "short context",
        *(f"look-up {format_length(n)}" for n in needles),
    ]
    shown = Table(*heads, box=None, padding=(0, 1, 0, 0))
    for place, column in enumerate(shown.columns):
        column.no_wrap, column.justify = True, "left" if place == 0 else "right"
    for row in result["settings"]:
        shown.add_row(
            escape(row["label"]),
            str(row["samples"]),
            *(_mean(row.get("nll", {}).get(str(n))) for n in lengths),
            _difference(row["minus_best"]) if row is not result["settings"][0] else "best",
            _difference(row["short_context"]),
            *(_mean(row.get("needle-nll", {}).get(str(n))) for n in needles),
        )
    native, target = (format_length(result[k]) for k in ("native_length", "target_length"))
    chosen = result["recommendation"]
    closing = (
        f"[bold]{escape(chosen['label'])}[/]: {escape(chosen['reason'])}"
        if chosen
        else "no two settings were compared"
    )
    return [
        f"{native} → {target} tokens, without training; nats per token, 95 % intervals over "
        f"documents; read: samples at {target}",
        shown,
        f"\n{closing}",
        f"took {format_seconds(result['seconds'])}, {result['read_tokens']:,} tokens read",
    ]


def _mean(score: dict[str, Any] | None) -> str:
    return f"{score['mean']:.3f}" if score else ""


def _difference(score: dict[str, Any] | None) -> str:
    if not score:
        return ""
    if score["clusters"] < 2:
        return f"{score['mean']:+.3f}"
    return f"{score['mean']:+.3f} \\[{score['ci_low']:+.3f}, {score['ci_high']:+.3f}]"


def search_text(result: dict[str, Any]) -> list[RenderableType]:
    """The best table, its seed, and whether the proof holds."""
    best, seed, proof = result["best"], result["best_seed"], result["held_out"]
    verdict = "better" if result["improved"] else "not shown to be better"
    return [
        f"{len(result['trials'])} tables on {len(result['fitness_documents'])} samples: best "
        f"{best['loss']:.4f} nats ({escape(best['origin'])}), best seed {seed['loss']:.4f} "
        f"({escape(seed['origin'])})",
        f"on {proof['samples']} samples that the search has not read: {proof['best']:.4f} against "
        f"{proof['seed']:.4f}, {_difference(proof['minus_seed'])}: [bold]{verdict}[/] than "
        f"{escape(seed['origin'])}",
        f"within the native window it costs {_difference(result['short_context']['best'])} against "
        f"the base, its seed {_difference(result['short_context']['seed'])}",
        "divisors: " + " ".join(f"{factor:.3g}" for factor in best["factors"]),
        f"attention factor: {best['attention_factor']:.4f}",
        f"took {format_seconds(result['seconds'])}, {result['read_tokens']:,} tokens read",
    ]
