"""How every picture looks and how it becomes bytes.

Figures carry their own light card, so that they read the same on a dark page; colours are
blind-safe (orange against blue, cividis) and every series differs in its marker too. The same
numbers give the same bytes: ids are salted, no date is written.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

BASE_COLOUR, EXTENDED_COLOUR, CONTROL_COLOUR = "#c2570c", "#1f5fa8", "#6b6f2a"
INK, FAINT, CARD = "#26221c", "#8a8378", "#fffdf9"
NARROW, WIDE = 5.5, 7.0
"""Inches: letters of a wider figure would be too small on a phone, of a narrower too large on a
desktop."""
LONG_NAME = 32
"""Characters: a legend of longer names has a line for each, below the picture."""
STYLE: Any = {
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


@dataclass(frozen=True)
class Plot:
    """A finished figure in both formats."""

    name: str
    """File stem."""
    alt: str
    """What it shows, for those who cannot see it."""
    svg: bytes
    png: bytes
    shape: str = ""
    """`wide`: scrolls in its frame on a phone; `narrow`: does not fill a desktop's column."""


def finish(figure: Figure, name: str, alt: str) -> Plot:
    """Draw `figure` as SVG and PNG."""
    rendered = {}
    for kind, metadata in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
        rendered[kind] = buffer.getvalue()
        figure.set_layout_engine("none")  # found already, which takes a third of the time
    return Plot(name, alt, rendered["svg"], rendered["png"], _shape(figure))


def literal(text: str) -> str:
    """`text` for a legend or a title on one line, where `$` would begin a formula and a leading `_`
    hide the entry."""
    return f" {' '.join(text.split())}".replace("$", r"\$")


def _shape(figure: Figure) -> str:
    width = figure.get_figwidth()
    return "wide" if width > WIDE else "narrow" if width < NARROW else ""
