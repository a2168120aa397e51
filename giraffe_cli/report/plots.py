"""The pictures of an evaluation, and of a run: those and the training loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from giraffe_cli.evals.measures import measure_name
from giraffe_cli.report.context_plots import gain_plot, nll_plot
from giraffe_cli.report.figure import STYLE, Plot
from giraffe_cli.report.heatmap import depth_plot
from giraffe_cli.report.loss_plot import Border, loss_plot, series
from giraffe_cli.report.position_plot import position_plot
from giraffe_cli.report.retrieval_plot import retrieval_plot
from giraffe_cli.report.scored import Scored
from giraffe_cli.rundir import atomic_open


def evaluation_plots(scored: Scored) -> list[Plot]:
    """The overall figures whose numbers exist, in reading order."""
    with matplotlib.rc_context(STYLE):
        plots = [
            nll_plot(scored),
            gain_plot(scored),
            *(position_plot(scored, task) for task in scored.tasks),
            *(retrieval_plot(scored, kind) for kind in ("", "ranked")),
        ]
    return [plot for plot in plots if plot is not None]


def depth_plots(scored: Scored) -> dict[str, list[Plot]]:
    """Task → its heat maps, one for each measure that was taken at several depths."""
    found: dict[str, list[Plot]] = {}
    with matplotlib.rc_context(STYLE):
        for task in scored.tasks:
            plots = [depth_plot(scored, measure_name(task, kind)) for kind in ("", "ranked")]
            if any(plots):
                found[task] = [plot for plot in plots if plot is not None]
    return found


def training_plots(
    metrics: Sequence[Mapping[str, Any]], borders: Sequence[Border] = ()
) -> list[Plot]:
    """The training loss where there is one; `metrics` and `borders` as `joined` gives them."""
    losses = series(metrics, "loss")
    with matplotlib.rc_context(STYLE):
        return [loss_plot(losses, metrics, borders)] if losses else []


def write_plots(plots: Iterable[Plot], folder: Path) -> None:
    """`NAME.svg` and `NAME.png` in `folder`, atomically."""
    for plot in plots:
        for suffix, data in (("svg", plot.svg), ("png", plot.png)):
            with atomic_open(folder / f"{plot.name}.{suffix}") as handle:
                handle.write(data)
