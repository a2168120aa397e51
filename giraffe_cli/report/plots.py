"""The three pictures: loss by context, passkey by depth and length, training loss.

Figures carry their own light card, so that they read the same on a dark page; colours are
blind-safe (orange against blue, cividis) and every series differs in its marker too. The same
numbers give the same bytes: ids are salted, no date is written.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from giraffe_cli.report.scores import Score, by_length
from giraffe_cli.rundir import atomic_open
from giraffe_cli.units import format_length

BASE_COLOUR, EXTENDED_COLOUR = "#c2570c", "#1f5fa8"
INK, FAINT, CARD = "#26221c", "#8a8378", "#fffdf9"
_STYLE: Any = {
    "svg.hashsalt": "giraffe",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "#b9b2a6",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": "#5d564c",
    "ytick.color": "#5d564c",
    "grid.color": "#ece6db",
    "figure.facecolor": CARD,
    "axes.facecolor": CARD,
}

Depths = Mapping[str, Mapping[str, Score]]
"""Length → depth (0 start, 1 end) → share found."""


@dataclass(frozen=True)
class Plot:
    """A finished figure in both formats."""

    name: str
    """File stem."""
    alt: str
    """What it shows, for those who cannot see it."""
    svg: bytes
    png: bytes


def make_plots(
    report: Mapping[str, Any],
    results: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
) -> list[Plot]:
    """The figures whose numbers exist, in reading order."""
    models = results.get("models", {})
    base, extended = (
        models.get(name, {}).get("passkey_by_depth") or {} for name in ("base", "checkpoint")
    )
    losses = [(int(m["step"]), float(m["loss"])) for m in metrics if "loss" in m and "step" in m]
    plots = []
    with matplotlib.rc_context(_STYLE):
        if by_length(report, "nll", "extended"):
            plots.append(_nll_plot(report))
        if base or extended:
            plots.append(_passkey_plot(base, extended, int(report["native_length"])))
        if losses:
            plots.append(_loss_plot(losses))
    return plots


def write_plots(plots: Iterable[Plot], folder: Path) -> None:
    """`NAME.svg` and `NAME.png` in `folder`, atomically."""
    for plot in plots:
        for suffix, data in (("svg", plot.svg), ("png", plot.png)):
            with atomic_open(folder / f"{plot.name}.{suffix}") as handle:
                handle.write(data)


def _finish(figure: Figure, name: str, alt: str) -> Plot:
    rendered = {}
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        rendered[kind] = buffer.getvalue()
    return Plot(name, alt, rendered["svg"], rendered["png"])


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
    _series(axes, base, "base", BASE_COLOUR, "s", "--")
    _series(axes, extended, "extended", EXTENDED_COLOUR, "o", "-")
    axes.set_title("Loss on the same words, by context before them")
    axes.set_ylabel("nats per token (lower is better)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    shown = ", ".join(
        f"{format_length(n)}: base {_mean(base, n)}, extended {_mean(extended, n)}" for n in lengths
    )
    return _finish(figure, "nll_by_context", f"Nats per token by context length. {shown}.")


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


def _series(
    axes: Axes, scores: Mapping[int, Score], name: str, colour: str, marker: str, line: str
) -> None:
    """Mean with its 95 % band, named at its right end rather than in a legend."""
    if not scores:
        return
    lengths = list(scores)
    mean, low, high = ([s[key] for s in scores.values()] for key in ("mean", "ci_low", "ci_high"))
    axes.fill_between(lengths, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(
        lengths, mean, color=colour, marker=marker, linestyle=line, linewidth=2, markersize=5.5
    )
    axes.annotate(
        f"{name} {mean[-1]:.2f}",
        (lengths[-1], mean[-1]),
        xytext=(9, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontweight="bold",
    )


# ── passkey by depth and length ──────────────────────────────────────────────────────────────


def _passkey_plot(base: Depths, extended: Depths, native: int) -> Plot:
    lengths = sorted({int(length) for model in (base, extended) for length in model})
    depths = sorted({float(d) for m in (base, extended) for cells in m.values() for d in cells})
    figure = Figure(
        figsize=(2.6 + 1.15 * len(lengths), 1.9 + 0.34 * len(depths)), layout="constrained"
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, scores in ((panels[0], "base", base), (panels[1], "extended", extended)):
        image = _heat_map(axes, scores, lengths, depths)
        _native_border(axes, lengths, native)
        axes.set_title(f"{name} ({_cell_sizes(scores)})")
        axes.set_xlabel("tokens of context")
    panels[0].set_ylabel("depth of the passkey (0% = start)")
    bar = figure.colorbar(image, ax=list(panels), ticks=[0, 0.5, 1], aspect=30, pad=0.02)
    bar.ax.set_yticklabels(["0%", "50%", "100%"])
    bar.outline.set_visible(False)
    alt = f"Share of passkeys found by depth and context length. Base: {_overall(base)}; "
    return _finish(figure, "passkey_by_depth", f"{alt}extended: {_overall(extended)}.")


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
    axes.set_xticks(np.arange(len(lengths) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(depths) - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=CARD, linewidth=1.5)
    axes.tick_params(which="minor", length=0)
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


# ── training loss ────────────────────────────────────────────────────────────────────────────


def _loss_plot(losses: Sequence[tuple[int, float]]) -> Plot:
    """Each step's loss, and a running mean over a tenth of the run."""
    steps, values = (np.array(column) for column in zip(*losses, strict=True))
    width = max(1, len(values) // 10)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    smooth = (sums[ends] - sums[starts]) / (ends - starts)
    figure = Figure(figsize=(6.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, color=EXTENDED_COLOUR, alpha=0.3, linewidth=1, marker=".")
    axes.plot(steps, smooth, color=EXTENDED_COLOUR, linewidth=2)
    axes.set_title(f"Training loss: each step, and the mean of the last {width}")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats per token")
    axes.grid(axis="y")
    alt = f"Training loss over {len(values)} steps, from {smooth[0]:.2f} to {smooth[-1]:.2f}."
    return _finish(figure, "training_loss", alt)
