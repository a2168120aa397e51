"""The marks of a comparison of RoPE tables: how a setting stands to the best, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from giraffe_cli.report.axes import Look, readable_end
from giraffe_cli.report.figure import BASE_COLOUR, CARD, EXTENDED_COLOUR
from giraffe_cli.report.numbers import Score, number


class Kind(NamedTuple):
    """How a setting compares with the best: its look, and in words with `{n}` samples."""

    look: Look
    hollow: bool
    words: str


KINDS = {
    "level": Kind(Look(EXTENDED_COLOUR, "o"), False, "the best, or not told apart from it, n={n}"),
    "worse": Kind(Look(BASE_COLOUR, "s"), False, "worse than the best, n={n}"),
    "fewer": Kind(Look("#6f685d", "o"), True, "dropped early: read on fewer samples, n beside it"),
}


def add_legend(figure: Figure, kinds: Sequence[str], samples: int) -> None:
    """What the marks mean; `samples` are those of the best."""
    marks = []
    for kind in (kind for name, kind in KINDS.items() if name in kinds):
        colour, marker = kind.look
        face = CARD if kind.hollow else colour
        words = kind.words.format(n=samples)
        marks.append(Line2D([], [], color=colour, marker=marker, mfc=face, ls="", label=words))
    figure.legend(handles=marks, loc="outside lower left", frameon=False, fontsize=8.5)


def ends_of(scores: Sequence[Score], kinds: Sequence[str]) -> tuple[float, float]:
    """The intervals of those level with the best lie within the axis, and of all others whose mean
    does, unless they were dropped."""
    means = [0.0, *(score["mean"] for score in scores)]
    paired = list(zip(scores, kinds, strict=True))
    end = readable_end(means, [score["ci_high"] for score, kind in paired if kind == "level"])
    whole = [s for s, kind in paired if kind != "fewer" and s["mean"] <= end]
    low = min([*means, *(s["ci_low"] for s in scores if s["n"] > 1 and s["mean"] <= end)])
    return low, max([end, *(score["ci_high"] for score in whole)])


def draw_mark(axes: Axes, place: int, score: Score, kind: Kind, samples: str) -> None:
    """The mean and, of two samples or more, its interval; `samples` where not those of the best."""
    ends = [score["ci_low"], score["ci_high"]] if score["n"] > 1 else [score["mean"]] * 2
    axes.plot(ends, [place, place], color=kind.look.colour, linewidth=1.6)
    _point(axes, score["mean"], place, kind.look.marker, kind)
    if samples:
        low, high = axes.get_xlim()
        left = ends[1] > low + 0.85 * (high - low)
        _note(axes, ends[0 if left else 1], place, samples, left)


def draw_arrow(axes: Axes, place: int, score: Score, kind: Kind, end: float, samples: str) -> None:
    """Where the mean lies beyond `end`: that it does, and the number."""
    _point(axes, end, place, ">", kind)
    figure = number(score["mean"], 2, sign=True)
    _note(axes, end, place, ", ".join([figure] + [samples] * bool(samples)), left=True)


def _point(axes: Axes, at: float, place: int, marker: str, kind: Kind) -> None:
    colour = kind.look.colour
    face = CARD if kind.hollow else colour
    axes.plot(at, place, marker, color=colour, markerfacecolor=face, markersize=6)


def _note(axes: Axes, at: float, place: int, text: str, left: bool) -> None:
    axes.annotate(
        text,
        (at, place),
        xytext=(-7 if left else 7, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8,
        color="#5d564c",
    )
