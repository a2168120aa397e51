"""The pictures of a packed corpus: tokens by length of their document, fill of the windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from giraffe_cli.corpus.pack import Int64
from giraffe_cli.report.figure import EXTENDED_COLOUR, FAINT, STYLE, Plot, finish
from giraffe_cli.units import format_length

COLOURS = ("#1f5fa8", "#c2570c", "#2f7d4f", "#8c4a9e", "#b08900", "#3a3a3a")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")
OTHERS = "other sources"
LABEL = 40
"""Characters of a name in the legend; the end of a path tells more than its begin."""


def pack_plots(stats: Mapping[str, Any], tokens: Int64, pieces: Int64) -> list[Plot]:
    """Both figures; `tokens` and `pieces` [windows] of each window."""
    with matplotlib.rc_context(STYLE):
        return [_lengths(stats), _fill(stats, tokens, pieces)]


def _lengths(stats: Mapping[str, Any]) -> Plot:
    """Stacked by source: the tokens that lie in documents of each octave of length."""
    sources = _largest(stats["sources"])
    octaves = _octaves(sources)
    figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    below = np.zeros(len(octaves))
    for number, (name, entries) in enumerate(sources.items()):
        held = {entry["from"]: entry["tokens"] for entry in entries}
        heights = np.array([held.get(octave, 0) for octave in octaves]) / 1e6
        axes.bar(
            range(len(octaves)),
            heights,
            bottom=below,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0.4,
            label=_label(name),
        )
        below += heights
    axes.set_xticks(range(len(octaves)), [format_length(octave) for octave in octaves], rotation=45)
    window = stats["window"]
    at = np.searchsorted(octaves, window) - 0.5
    axes.axvline(at, color=FAINT, linestyle=":")
    axes.annotate("the window", (at, 1), xycoords=("data", "axes fraction"), color=FAINT,
                  xytext=(3, -10), textcoords="offset points")  # fmt: skip
    axes.set_title("Tokens by length of their document")
    axes.set_xlabel("tokens in the document, from")
    axes.set_ylabel("million tokens")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if len(sources) > 1:
        axes.legend(frameon=False, fontsize=8)
    alt = f"Tokens by length of their document; {stats['long_share']:.0%} reach the window."
    return finish(figure, "document_lengths", alt)


def _label(name: str) -> str:
    """A source's name in a legend, where `$` would begin a formula and a leading `_` hide it."""
    shown = name if len(name) <= LABEL else f"…{name[1 - LABEL :]}"
    return f" {shown}".replace("$", r"\$")


def _octaves(sources: Mapping[str, list[dict[str, int]]]) -> list[int]:
    """Every octave from the first to the last that holds a document: a gap is seen as one."""
    held = [entry["from"] for entries in sources.values() for entry in entries]
    low, high = min(held, default=1), max(held, default=1)
    return [low << step for step in range((high // low).bit_length())]


def _largest(sources: Mapping[str, Any]) -> dict[str, list[dict[str, int]]]:
    """The five sources of the most tokens, the others added up."""
    ranked = sorted(sources, key=lambda name: -sources[name]["tokens"])
    shown = {name: sources[name]["document_lengths"] for name in ranked[:5]}
    total: dict[int, int] = {}
    for name in ranked[5:]:
        for entry in sources[name]["document_lengths"]:
            total[entry["from"]] = total.get(entry["from"], 0) + entry["tokens"]
    if total:
        shown[OTHERS] = [{"from": octave, "tokens": n} for octave, n in sorted(total.items())]
    return shown


def _fill(stats: Mapping[str, Any], tokens: Int64, pieces: Int64) -> Plot:
    """Left, how full the windows are; right, how many pieces they hold."""
    figure = Figure(figsize=(6.6, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    percent = 100 * tokens / stats["window"]
    # Never beyond 100, also where every window is full.
    edges = np.linspace(min(95.0, np.floor(percent.min(initial=100))), 100, 21)
    left.hist(percent, bins=edges, color=EXTENDED_COLOUR)
    left.set_yscale("log")
    left.set_title("How full windows are")
    left.set_xlabel("% of the window")
    left.set_ylabel("windows")
    most = int(pieces.max(initial=1))
    step = -(-most // 40)  # whole numbers of pieces a bar, 40 bars at the most
    right.hist(pieces, bins=np.arange(0.5, most + step + 0.5, step), color=EXTENDED_COLOUR)
    right.set_title("Pieces in a window")
    right.set_xlabel("pieces")
    for axes in (left, right):
        axes.grid(axis="y")
        axes.set_axisbelow(True)
    alt = f"Windows are {stats['fill']:.1%} full; they hold up to {most} pieces."
    return finish(figure, "windows", alt)
