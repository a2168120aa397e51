"""Every retrieval task in one picture: share right by length, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from giraffe_cli.report.axes import LOOKS, Look, context_axis, native_line
from giraffe_cli.report.figure import FAINT, LONG_NAME, Plot, finish, literal
from giraffe_cli.report.numbers import Score
from giraffe_cli.report.scored import Scored
from giraffe_cli.units import format_length

KINDS = {"": "Retrieval, answer generated", "ranked": "Retrieval, answer ranked among ten"}


class Series(NamedTuple):
    """A line in every panel."""

    name: str
    look: Look
    line: str
    scores: Mapping[str, Mapping[int, Score]]
    """Task → length → score."""


def retrieval_plot(scored: Scored, kind: str) -> Plot | None:
    """A panel for each task; `kind` is `""` (generated) or `ranked`."""
    measures = scored.retrieval(kind)
    series = [
        Series(
            scored.name(model),
            LOOKS[model],
            "-",
            {m.partition(".")[0]: s for m in measures if (s := scored.scores(m, model))},
        )
        for model in scored.models
    ]
    chance = {m.partition(".")[0]: float(scored.measures[m]["chance"]) for m in measures}
    name = f"retrieval_{kind or 'generated'}"
    return panels([s for s in series if s.scores], chance, scored.native_length, name, KINDS[kind])


def panels(
    series: Sequence[Series], chance: Mapping[str, float], native: int | None, name: str, title: str
) -> Plot | None:
    """Small pictures of one scale, a task each; None where there is no task."""
    tasks = [task for task in chance if any(task in one.scores for one in series)]
    if not tasks:
        return None
    columns = min(3, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    size = (max(6.0, 2.45 * columns), 0.75 + 1.95 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for index, task in enumerate(tasks):
        axes = grid[index // columns][index % columns]
        _panel(axes, task, series, chance[task], native)
        if index % columns == 0:
            axes.set_ylabel("share right")
        axes.set_xlabel("tokens of context" if index + columns >= len(tasks) else "")
    for spare in range(len(tasks), rows * columns):
        grid[spare // columns][spare % columns].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    handles = list(grid[0][0].containers)
    figure.legend(
        handles,
        [literal(one.name) for one in series],
        loc="outside lower left",
        ncols=1 if max(len(one.name) for one in series) > LONG_NAME else min(3, len(series)),
        frameon=False,
        fontsize=9,
    )
    told = "; ".join(
        f"{task}: " + ", ".join(f"{one.name} {_told(one.scores.get(task, {}))}" for one in series)
        for task in tasks
    )
    return finish(figure, name, f"{title}, by context length. {told}.")


def _panel(
    axes: Axes, task: str, series: Sequence[Series], chance: float, native: int | None
) -> None:
    lengths = sorted({n for one in series for n in one.scores.get(task, {})})
    for place, one in enumerate(series):
        scores = one.scores.get(task, {})
        # side by side, so that equal scores do not hide one another
        shift = 1 + 0.05 * (place - (len(series) - 1) / 2)
        mean = [score["mean"] for score in scores.values()]
        below = [max(0.0, s["mean"] - s["ci_low"]) for s in scores.values()]
        above = [max(0.0, s["ci_high"] - s["mean"]) for s in scores.values()]
        axes.errorbar(
            [length * shift for length in scores],
            mean,
            (below, above) if scores else None,
            fmt=one.look.marker + one.line,
            color=one.look.colour,
            capsize=2.5,
            linewidth=1.3,
            markersize=4.5,
        )
    context_axis(axes, lengths)
    axes.tick_params(labelsize=8.5)
    if chance:
        axes.axhline(chance, color=FAINT, linewidth=1, linestyle=":")
    if native and lengths[0] <= native < lengths[-1]:
        native_line(axes, native, named=False)
    axes.set_ylim(-0.04, 1.04)
    axes.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
    axes.set_title(task, fontsize=9.5, pad=5)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _told(scores: Mapping[int, Score]) -> str:
    found = [f"{100 * s['mean']:.0f}% at {format_length(n)}" for n, s in scores.items()]
    return ", ".join(found) or "not measured"
