"""Loss by context length of the RoPE tables that were compared to the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from giraffe_cli.report.axes import Look, band, context_axis, native_line
from giraffe_cli.report.figure import (
    BASE_COLOUR,
    CONTROL_COLOUR,
    EXTENDED_COLOUR,
    STYLE,
    Plot,
    finish,
    literal,
)
from giraffe_cli.report.numbers import Score, number
from giraffe_cli.units import format_length

LOOKS = (
    Look(EXTENDED_COLOUR, "o"),
    Look(BASE_COLOUR, "s"),
    Look(CONTROL_COLOUR, "D"),
    Look("#8c4a9e", "v"),
)
"""Of as many settings as one picture takes."""


def comparison_curves_plot(comparison: Mapping[str, Any]) -> Plot | None:
    """Lines of the best settings and the band of the first; None where none was read at several
    lengths.

    Args:
        comparison: content of `comparison.json`.
    """
    target = comparison["target_length"]
    curves = {s["label"]: scores for s in comparison["settings"] if (scores := curve(s, target))}
    shown = list(curves.items())[: len(LOOKS)]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.1 + 0.2 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        context_axis(axes, sorted({length for _, scores in shown for length in scores}))
        marks = []
        band(axes, shown[0][1], LOOKS[0])
        for (label, scores), look in zip(shown, LOOKS, strict=False):
            means = [score["mean"] for score in scores.values()]
            axes.plot([*scores], means, f"{look.marker}-", color=look.colour, linewidth=1.6)
            said = literal(f"{label}: {number(scores[target]['mean'], 3)} at the target")
            marks.append(Line2D([], [], color=look.colour, marker=look.marker, label=said))
        native_line(axes, comparison["native_length"])
        axes.set_title("Loss on the same words, by context before them")
        axes.set_ylabel("nats per token (lower is better)\nband: 95% over texts, of the best")
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        figure.legend(handles=marks, loc="outside lower left", frameon=False, fontsize=9)
        told = "; ".join(f"{label}: {_told(scores)}" for label, scores in shown)
        alt = f"Nats per token by context length, before training. {told}."
        return finish(figure, "rope_comparison_curves", alt)


def curve(setting: Mapping[str, Any], target: int) -> dict[int, Score]:
    """Length → loss, of those lengths that were read on the same samples as the target: others are
    means over other texts. Empty where that is the target alone."""
    scores = {int(length): score for length, score in setting.get("nll", {}).items()}
    if target not in scores:
        return {}
    same = {n: scores[n] for n in sorted(scores) if scores[n]["n"] == scores[target]["n"]}
    return same if len(same) > 1 else {}


def _told(scores: Mapping[int, Score]) -> str:
    return ", ".join(f"{number(s['mean'], 3)} at {format_length(n)}" for n, s in scores.items())
