"""A comparison of RoPE tables as a table of text, and a comparison or a search as picture files.

    setting       minus the best at 16k   cost at 1k       loss at 1k      loss at 16k
    yarn          the best                +0.18 ± 0.08     2.81 ± 0.44     3.12 ± 0.61
    linear        +1.658, n 1             –                –               4.782, n 1

What was not read is `–`, and one sample has no interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.report import numbers
from giraffe_cli.report.comparison_curves import comparison_curves_plot
from giraffe_cli.report.comparison_plot import comparison_plot
from giraffe_cli.report.figure import Plot
from giraffe_cli.report.numbers import ABSENT, Score
from giraffe_cli.report.plots import write_plots
from giraffe_cli.report.score_tables import Cell, difference, level
from giraffe_cli.report.search_plot import search_plot
from giraffe_cli.units import format_length

TASKS = {"nll": "loss", "needle-nll": "look-up loss"}
"""What is read of a setting → its heading."""


@dataclass(frozen=True)
class SettingRow:
    """One RoPE table."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class ComparisonTable:
    """Settings as rows, best first."""

    headings: list[str]
    rows: list[SettingRow]


def comparison_table(comparison: Mapping[str, Any]) -> ComparisonTable:
    """A row for each setting: difference to the best, cost at short context, and losses by what at
    least one setting was read on.

    Args:
        comparison: content of `comparison.json`.
    """
    settings = comparison["settings"]
    target, native = (format_length(comparison[f"{n}_length"]) for n in ("target", "native"))
    read = list(_columns(settings))
    losses = [f"{TASKS[task]} at {format_length(length)}" for task, length in read]
    rows = []
    for place, setting in enumerate(settings):
        best = place == 0
        rows.append(
            SettingRow(
                str(setting["label"]),
                [
                    Cell("the best") if best else behind(setting["minus_best"]),
                    behind(setting["short_context"]),
                    *(scored(setting.get(task, {}).get(str(length))) for task, length in read),
                ],
            )
        )
    return ComparisonTable([f"minus the best at {target}", f"cost at {native}", *losses], rows)


def _columns(settings: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int]]:
    """(task, length) of every loss."""
    for task in TASKS:
        for length in sorted(
            {int(length) for setting in settings for length in setting.get(task, {})}
        ):
            yield task, length


def scored(score: Score | None) -> Cell:
    """A loss; of one sample without an interval."""
    if score is None:
        return Cell(ABSENT)
    return level(score, False) if score["n"] > 1 else _single(score, sign=False)


def behind(score: Score | None) -> Cell:
    """A paired difference; of one sample without an interval."""
    if score is None:
        return Cell(ABSENT)
    return difference(score, False) if score["n"] > 1 else _single(score, sign=True)


def _single(score: Score, sign: bool) -> Cell:
    return Cell(numbers.number(score["mean"], 3, sign), (f"n {score['n']}",))


def comparison_plots(comparison: Mapping[str, Any]) -> list[Plot]:
    """The pictures whose numbers exist."""
    plots = comparison_plot(comparison), comparison_curves_plot(comparison)
    return [plot for plot in plots if plot is not None]


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `comparison.json`'s pictures into `folder`, as PNG and SVG; the PNG files written.

    Raises:
        GiraffeError: a file cannot be written.
    """
    return _written(comparison_plots(comparison), folder)


def write_search(search: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw `search.json`'s picture into `folder`, as PNG and SVG; the PNG files written.

    Raises:
        GiraffeError: a file cannot be written.
    """
    plot = search_plot(search)
    return _written([plot] if plot else [], folder)


def _written(plots: Sequence[Plot], folder: Path) -> list[Path]:
    write_plots(plots, folder)
    return [folder / f"{plot.name}.png" for plot in plots]
