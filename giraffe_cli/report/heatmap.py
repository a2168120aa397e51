"""Shares by depth and context length: the models side by side on one fixed scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from giraffe_cli.report.figure import CARD, Plot, finish
from giraffe_cli.report.numbers import Score
from giraffe_cli.report.scored import Scored
from giraffe_cli.units import format_length

Depths = Mapping[str, Mapping[str, Score]]
"""Length → depth (0 start, 1 end) → share found."""
MOST_DEPTHS = 12
"""Rows of a picture; where samples lie at more depths they are gathered in tenths."""


def depth_plot(scored: Scored, measure: str) -> Plot | None:
    """A heat map for each model with depths; a line parts the lengths beyond the native window."""
    tables = {m: d for m in ("base", "checkpoint") if (d := scored.by_depth(measure, m))}
    if not tables or not scored.is_share(measure):
        return None
    tables = {model: gathered(table) for model, table in tables.items()}
    lengths = sorted({int(length) for table in tables.values() for length in table})
    depths = sorted({float(d) for t in tables.values() for cells in t.values() for d in cells})
    figure = Figure(
        figsize=(
            max(3.9 * len(tables) + 0.4, 1.6 + (0.5 + 0.58 * len(lengths)) * len(tables)),
            1.9 + 0.34 * len(depths),
        ),
        layout="constrained",
    )
    panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    for axes, (model, table) in zip(panels, tables.items(), strict=True):
        image = _heat_map(axes, table, lengths, depths)
        _native_border(axes, lengths, scored.native_length)
        axes.set_title(f"{scored.name(model)} ({_cell_sizes(table)})")
        axes.set_xlabel("tokens of context")
    panels[0].set_ylabel(f"{measure}: depth (0% = start)")
    bar = figure.colorbar(image, ax=list(panels), ticks=[0, 0.5, 1], aspect=30, pad=0.02)
    bar.ax.set_yticklabels(["0%", "50%", "100%"])
    bar.outline.set_visible(False)
    told = "; ".join(f"{scored.name(model)}: {_overall(t)}" for model, t in tables.items())
    alt = f"{measure}: share right by depth and context length. {told}."
    return finish(figure, f"{measure.replace('.', '_')}_by_depth", alt)


def gathered(table: Depths) -> Depths:
    """The table itself, or where it has more than `MOST_DEPTHS` depths, the means by tenth."""
    if len({depth for cells in table.values() for depth in cells}) <= MOST_DEPTHS:
        return table
    found: dict[str, dict[str, Score]] = {}
    for length, cells in table.items():
        tenths: dict[str, list[Score]] = {}
        for depth, score in cells.items():
            tenths.setdefault(f"{min(9, int(10 * float(depth))) / 10 + 0.05:.2f}", []).append(score)
        found[length] = {
            tenth: {
                "n": sum(s["n"] for s in scores),
                "mean": sum(s["mean"] * s["n"] for s in scores) / sum(s["n"] for s in scores),
            }
            for tenth, scores in tenths.items()
        }
    return found


def _heat_map(axes: Axes, scores: Depths, lengths: list[int], depths: list[float]) -> Any:
    """Cells on a fixed 0..1 scale with their percentage written in; unmeasured cells stay blank."""
    cells = np.full((len(depths), len(lengths)), np.nan)
    for length, column in scores.items():
        for depth, score in column.items():
            cells[depths.index(float(depth)), lengths.index(int(length))] = score["mean"]
    image = axes.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column_index), share in np.ndenumerate(cells):
        if not np.isnan(share):
            colour = "#1c1a17" if share > 0.55 else "#ffffff"
            text = f"{100 * share:.0f}"
            axes.text(column_index, row, text, ha="center", va="center", color=colour, fontsize=8.5)
    unit = 100 if max(depths) <= 1 else 1
    axes.set_xticks(range(len(lengths)), [format_length(length) for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{unit * depth:.0f}%" for depth in depths])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for place in np.arange(len(lengths) - 1) + 0.5:
        axes.axvline(place, color=CARD, linewidth=1.5)
    for place in np.arange(len(depths) - 1) + 0.5:
        axes.axhline(place, color=CARD, linewidth=1.5)
    return image


def _native_border(axes: Axes, lengths: list[int], native: int) -> None:
    """A line between the lengths inside the native window and those beyond it."""
    inside = sum(length <= native for length in lengths)
    if 0 < inside < len(lengths):
        axes.axvline(inside - 0.5, color="#d1495b", linewidth=2)
        axes.annotate(
            "native | beyond",
            (inside - 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            color="#a8323f",
        )


def _cell_sizes(scores: Depths) -> str:
    """`n = 4 a cell`, or the range."""
    sizes = sorted({int(s["n"]) for column in scores.values() for s in column.values()})
    if not sizes:
        return "not measured"
    return f"n = {sizes[0] if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'} a cell"


def _overall(scores: Depths) -> str:
    parts = [
        f"{format_length(int(length))} {np.mean([s['mean'] for s in column.values()]):.0%}"
        for length, column in sorted(scores.items(), key=lambda item: int(item[0]))
        if column
    ]
    return ", ".join(parts) or "not measured"
