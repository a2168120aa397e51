"""The pictures of a run: loss by context, passkey by depth and length, training loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from giraffe_cli.report.figure import (
    BASE_COLOUR,
    CONTROL_COLOUR,
    EXTENDED_COLOUR,
    FAINT,
    STYLE,
    Plot,
    finish,
)
from giraffe_cli.report.heatmap import passkey_plot
from giraffe_cli.report.loss_plot import Border, loss_plot, series
from giraffe_cli.report.scores import Score, by_length
from giraffe_cli.rundir import atomic_open
from giraffe_cli.units import format_length


def make_plots(
    report: Mapping[str, Any],
    results: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    borders: Sequence[Border] = (),
) -> list[Plot]:
    """The figures whose numbers exist, in reading order; `metrics` and `borders` as `joined`."""
    models = results.get("models", {})
    base, extended = (
        models.get(name, {}).get("by_depth", {}).get("passkey") or {}
        for name in ("base", "checkpoint")
    )
    losses = series(metrics, "loss")
    plots = []
    with matplotlib.rc_context(STYLE):
        if by_length(report, "nll", "extended"):
            plots.append(_nll_plot(report))
        if base or extended:
            plots.append(passkey_plot(base, extended, int(report["native_length"])))
        if losses:
            plots.append(loss_plot(losses, metrics, borders))
    return plots


def write_plots(plots: Iterable[Plot], folder: Path) -> None:
    """`NAME.svg` and `NAME.png` in `folder`, atomically."""
    for plot in plots:
        for suffix, data in (("svg", plot.svg), ("png", plot.png)):
            with atomic_open(folder / f"{plot.name}.{suffix}") as handle:
                handle.write(data)


# ── loss by context ──────────────────────────────────────────────────────────────────────────


def _nll_plot(report: Mapping[str, Any]) -> Plot:
    figure = Figure(figsize=(6.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    native = int(report["native_length"])
    base = by_length(report, "nll", "base")
    extended = by_length(report, "nll", "extended")
    lengths = sorted({*base, *extended, native})
    _context_axis(axes, lengths)
    _native_line(axes, native)
    shift = _label_shift(base, extended)
    _series(axes, base, "base", BASE_COLOUR, "s--", shift)
    _series(axes, extended, "extended", EXTENDED_COLOUR, "o-", -shift)
    control = by_length(report, "nll", "control")
    _series(axes, control, "control", CONTROL_COLOUR, "D:", -16)
    axes.set_title("Loss on the same words, by context before them")
    axes.set_ylabel("nats per token (lower is better)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    shown = ", ".join(
        f"{format_length(n)}: base {_mean(base, n)}, extended {_mean(extended, n)}" for n in lengths
    )
    shown += "".join(f"; control {_mean(control, n)} at {format_length(n)}" for n in control)
    return finish(figure, "nll_by_context", f"Nats per token by context length. {shown}.")


_BOUNDS = ("ci_low", "ci_high")


def _mean(scores: Mapping[int, Score], length: int) -> str:
    return f"{scores[length]['mean']:.2f}" if length in scores else "not measured"


def _context_axis(axes: Axes, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [format_length(length) for length in lengths])
    axes.minorticks_off()
    # Room on the right for the series' names.
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * (lengths[-1] / lengths[0]) ** 0.2 * 1.12)
    axes.set_xlabel("tokens of context")


def _native_line(axes: Axes, native: int) -> None:
    axes.axvline(native, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    axes.annotate(
        f"native window {format_length(native)}",
        (native, 1),
        xycoords=("data", "axes fraction"),
        xytext=(5, -4),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        color="#6f685d",
    )


def _label_shift(base: Mapping[int, Score], extended: Mapping[int, Score]) -> float:
    """Points by which the two names move apart when the curves end too close for both."""
    if not base or not extended:
        return 0
    bounds = [s[key] for scores in (base, extended) for s in scores.values() for key in _BOUNDS]
    gap = base[max(base)]["mean"] - extended[max(extended)]["mean"]
    if abs(gap) > 0.07 * (max(bounds) - min(bounds)):
        return 0
    return 7 if gap >= 0 else -7


def _series(
    axes: Axes, scores: Mapping[int, Score], name: str, colour: str, line: str, shift: float
) -> None:
    """Mean with its 95 % band, named at its right end rather than in a legend."""
    if not scores:
        return
    lengths = list(scores)
    mean, low, high = ([s[key] for s in scores.values()] for key in ("mean", "ci_low", "ci_high"))
    axes.fill_between(lengths, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(lengths, mean, line, color=colour, linewidth=2, markersize=5.5)
    axes.annotate(
        f"{name} {mean[-1]:.2f}",
        (lengths[-1], mean[-1]),
        xytext=(9, shift),
        textcoords="offset points",
        va="center",
        color=colour,
        fontweight="bold",
    )
