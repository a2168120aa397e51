"""The picture of `giraffe rope show --plot`: strategies side by side, pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from giraffe_cli.report.figure import FAINT, STYLE, Plot, finish
from giraffe_cli.rope.base import Head, RopeTable
from giraffe_cli.units import format_length

COLOURS = ("#1f5fa8", "#c2570c", "#2f7d4f", "#8c4a9e", "#b08900", "#3a3a3a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
STYLES = ("-", "--", ":")


def rope_plot(tables: Sequence[RopeTable], head: Head) -> Plot:
    """Two panels over the pair index: what each pair's frequency is divided by, and its
    wavelength in native windows; `head` is what every table was made for."""
    native, target = (
        format_length(n) for n in (head.original_max_position_embeddings, head.target_length)
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _divisors(left, tables, head)
        _wavelengths(right, tables, head)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
        figure.suptitle(
            f"{native} to {target} tokens (s = {head.factor:g}), head_dim {head.head_dim}, "
            f"rope_theta {head.rope_theta:g}",
            x=0.01,
            ha="left",
        )
        names = ", ".join(table.strategy for table in tables)
        return finish(figure, "rope", f"RoPE tables from {native} to {target} tokens: {names}.")


def _divisors(axes: Axes, tables: Sequence[RopeTable], head: Head) -> None:
    base = head.base_inv_freq()
    # Truncation stops pairs altogether, divisor 1e9: beyond this edge they leave the picture.
    edge = 8 * head.factor
    for index, table in enumerate(tables):
        divisors = base / np.array(table.inv_freq)
        label = table.strategy
        if table.attention_factor != 1:
            label += f" (attention {table.attention_factor:.3f})"
        _line(axes, index, np.where(divisors <= edge, divisors, np.nan), label)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(head.factor, color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_title("What each frequency is divided by")
    axes.set_xlabel("pair (0 turns fastest)")
    axes.grid(axis="y")


def _wavelengths(axes: Axes, tables: Sequence[RopeTable], head: Head) -> None:
    window = head.original_max_position_embeddings
    edge = 64 * float(2 * math.pi / (window * head.base_inv_freq()[-1]) * head.factor)
    for index, table in enumerate(tables):
        wavelengths = 2 * math.pi / np.array(table.inv_freq) / window
        _line(axes, index, np.where(wavelengths <= edge, wavelengths, np.nan), None)
    axes.set_yscale("log")
    for height, text in ((1.0, "one native window"), (head.factor, "the target")):
        axes.axhline(height, color=FAINT, linewidth=0.8, linestyle=":")
        axes.annotate(text, (0, height), textcoords="offset points", xytext=(0, 3), color=FAINT)
    axes.set_title("Wavelength in native windows")
    axes.set_xlabel("pair (0 turns fastest)")
    axes.grid(axis="y")


def _line(axes: Axes, index: int, values: np.ndarray, label: str | None) -> None:
    axes.plot(
        values,
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
        markersize=3.5,
        markevery=(index % 4, 4),
        linewidth=1.3,
        label=label,
    )
