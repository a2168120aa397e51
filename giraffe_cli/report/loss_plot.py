"""The training loss by step, over all stages of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from giraffe_cli.report.figure import BASE_COLOUR, EXTENDED_COLOUR, FAINT, Plot, finish
from giraffe_cli.units import counted


class Border(NamedTuple):
    """Where a stage begins: after `step` steps of the stages before it."""

    step: int
    name: str


def joined(
    stages: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> tuple[list[dict[str, Any]], list[Border]]:
    """The lines of each stage's `metrics.jsonl` as those of one run, steps counted on, and where
    each stage begins."""
    lines, borders, done = list[dict[str, Any]](), list[Border](), 0
    for stage, name in zip(stages, names, strict=True):
        numbered = [line for line in stage if "step" in line]
        borders += [Border(done, name)] if numbered else []
        lines += [{**line, "step": int(line["step"]) + done} for line in numbered]
        done = lines[-1]["step"] if lines else 0
    return lines, borders


def series(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of every line that has a number under `key` and moved the weights, if it was
    to: the loss of a skipped step, where it is a number, is not one that was learnt from."""
    return [
        (int(m["step"]), float(m[key]))
        for m in metrics
        if "step" in m and m.get(key) is not None and not (key == "loss" and m.get("skipped"))
    ]


def loss_plot(
    losses: Sequence[tuple[int, float]],
    metrics: Sequence[Mapping[str, Any]],
    borders: Sequence[Border],
) -> Plot:
    """Each step's loss, a running mean over a tenth of the run, the held-out loss where it was
    measured, a mark at each step that was skipped, and a line where each of several stages begins.
    """
    steps, values = (np.array(column) for column in zip(*losses, strict=True))
    width = max(1, len(values) // 10)
    smooth = running_mean(values, width)
    held_out = series(metrics, "held_out_nll")
    skipped = [int(m["step"]) for m in metrics if m.get("skipped")]
    figure = Figure(figsize=(6.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, color=EXTENDED_COLOUR, alpha=0.3, linewidth=1, marker=".")
    axes.plot(steps, smooth, color=EXTENDED_COLOUR, linewidth=2, label="training")
    if held_out:
        at, nll = zip(*held_out, strict=True)
        axes.plot(at, nll, "D--", color=BASE_COLOUR, linewidth=1.2, markersize=5, label="held out")
    if skipped:
        edge = axes.get_xaxis_transform()
        axes.plot(
            skipped, [0.03] * len(skipped), "x", color="#8c2d19", transform=edge, label="skipped"
        )
    if held_out or skipped:
        axes.legend(loc="upper right", frameon=False)
    for border in borders if len(borders) > 1 else ():
        _draw_border(axes, border)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    smoothed = f": each step, and the mean of the last {width}" if width > 1 else " by step"
    axes.set_title(f"Training loss{smoothed}")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.grid(axis="y")
    read = f"Training loss over {counted(len(values), 'step')}"
    alt = f"{read}, from {smooth[0]:.2f} to {smooth[-1]:.2f}."
    if held_out:
        alt += f" Held-out loss from {held_out[0][1]:.2f} to {held_out[-1][1]:.2f}."
    if len(borders) > 1:
        alt += f" Stages: {', '.join(f'{b.name} from step {b.step + 1}' for b in borders)}."
    if skipped:
        alt += f" Skipped steps: {', '.join(map(str, skipped))}."
    return finish(figure, "training_loss", alt)


def running_mean(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """The mean of each value and up to `width` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _draw_border(axes: Axes, border: Border) -> None:
    axes.axvline(border.step + 0.5, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        f"to {border.name}",
        (border.step + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -3),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color="#6f685d",
    )
