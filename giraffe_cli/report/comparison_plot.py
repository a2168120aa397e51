"""Who is behind the best RoPE table, and by how much, in one picture.

    yarn             ●                       the best
    yarn factor=32    ├─■─┤                  on the same samples, interval above 0: worse
    linear                   +1.66, n=1 ▷    read on one sample, and beyond the end of the axis

Differences are paired, so that how hard a text is cancels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from giraffe_cli.report.comparison_marks import (
    KINDS,
    add_legend,
    draw_arrow,
    draw_mark,
    ends_of,
)
from giraffe_cli.report.figure import FAINT, STYLE, Plot, finish
from giraffe_cli.report.numbers import Score, number
from giraffe_cli.units import format_length

Setting = Mapping[str, Any]
"""A row of `comparison.json`."""
MOST_ROWS = 30
WIDTH, ROW = 5.4, 0.34
"""Inches: of the picture, tall rather than wide; of a setting, two lines."""
LABEL = 22
"""Characters of a line of a label."""


def comparison_plot(comparison: Mapping[str, Any]) -> Plot | None:
    """Settings as rows, best on top: the paired difference to the best at the target, and beside
    it the cost at short context where that was read; None where no two were compared.

    Args:
        comparison: content of `comparison.json`.
    """
    settings = comparison["settings"][:MOST_ROWS]
    if len(settings) < 2:
        return None
    keys = ["minus_best"] + ["short_context"] * any(s["short_context"] for s in settings)
    kinds = [kind_of(setting, settings[0]) for setting in settings]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9 + ROW * len(settings)), layout="constrained")
        widths = [2.3, 1][: len(keys)]
        grid = figure.subplots(1, len(keys), sharey=True, squeeze=False, width_ratios=widths)[0]
        for axes, key, steps in zip(grid, keys, (5, 2), strict=False):
            end = _panel(axes, [setting[key] for setting in settings], kinds)
            axes.xaxis.set_major_locator(MaxNLocator(steps))
            axes.set_xlabel(_axis_title(comparison, key, end), fontsize=9)
        _label_rows(grid[0], [setting["label"] for setting in settings])
        add_legend(figure, kinds, settings[0]["samples"])
        title = f"{measured(comparison)}, minus that of the best"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return finish(figure, "rope_comparison", _alt(comparison, settings, kinds))


def kind_of(setting: Setting, best: Setting) -> str:
    """Key of `KINDS`."""
    score = setting["minus_best"]
    if setting["samples"] < best["samples"]:
        return "fewer"
    return "worse" if score and score["n"] > 1 and score["ci_low"] > 0 else "level"


def measured(comparison: Mapping[str, Any]) -> str:
    """`Loss at 16k`."""
    what = "Loss" if comparison["fitness"] == "nll" else "Loss of looked-up numbers"
    return f"{what} at {format_length(comparison['target_length'])}"


def _panel(axes: Axes, scores: Sequence[Score | None], kinds: Sequence[str]) -> float | None:
    """Marks with their intervals; the end of the axis where something lies beyond it."""
    found = [score for score in scores if score]
    kinds_found = [kind for score, kind in zip(scores, kinds, strict=True) if score]
    low, end = ends_of(found, kinds_found)
    room = 0.08 * max(end - low, 0.01)
    axes.set_xlim(low - room, end + room)
    axes.axvline(0, color=FAINT, linewidth=1, zorder=1)
    for place, (score, kind) in enumerate(zip(scores, kinds, strict=True)):
        if score:
            samples = f"n={score['n']}" if score["n"] != (scores[0] or {}).get("n") else ""
            if score["mean"] > end:
                draw_arrow(axes, place, score, KINDS[kind], end, samples)
            else:
                draw_mark(axes, place, score, KINDS[kind], samples)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    axes.tick_params(labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="both")
    axes.set_axisbelow(True)
    return end if any(score["mean"] > end for score in found) else None


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Labels on the left, the best in bold, on top."""
    shown = ["\n".join(textwrap.wrap(t, LABEL, max_lines=2, placeholder=" …")) for t in labels]
    axes.set_yticks(range(len(shown)), shown, parse_math=False, fontsize=8.5, linespacing=1.1)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.get_yticklabels()[0].set_fontweight("bold")


def _axis_title(comparison: Mapping[str, Any], key: str, end: float | None) -> str:
    native = format_length(comparison["native_length"])
    known = {
        "minus_best": "nats per token (right: worse)",
        "short_context": f"nats at {native},\nminus unscaled",
    }
    clipped = f"\n▷ beyond {number(end, 2, sign=True)}" if end is not None else ""
    return known[key] + clipped


def _alt(comparison: Mapping[str, Any], settings: Sequence[Setting], kinds: Sequence[str]) -> str:
    """Every number of the picture, and how many settings are not in it."""
    behind = [
        f"{setting['label']} {told(setting['minus_best'])}" + ", dropped early" * (kind == "fewer")
        for setting, kind in zip(settings, kinds, strict=True)
    ]
    costs = [f"{s['label']} {told(s['short_context'])}" for s in settings if s["short_context"]]
    native, more = format_length(comparison["native_length"]), len(comparison["settings"])
    alt = f"{measured(comparison)} in nats per token, minus that of the best, "
    alt += f"{settings[0]['label']}: {'; '.join(behind[1:])}."
    if costs:
        alt += f" Cost at {native} against the unscaled base: {'; '.join(costs)}."
    return alt + f" {more - len(settings)} more are not shown." * (more > len(settings))


def told(score: Score | None) -> str:
    """`+0.044 (−0.027 to +0.157), n=4`; of one sample no interval."""
    if score is None:
        return "not read"
    mean, low, high = (number(score[key], 3, sign=True) for key in ("mean", "ci_low", "ci_high"))
    return f"{mean}{f' ({low} to {high})' * (score['n'] > 1)}, n={score['n']}"
