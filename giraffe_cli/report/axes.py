"""What the pictures of an evaluation share: the axis of context lengths, bands, a model's look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from giraffe_cli.report.figure import BASE_COLOUR, CONTROL_COLOUR, EXTENDED_COLOUR, FAINT
from giraffe_cli.report.numbers import Score
from giraffe_cli.units import format_length


class Look(NamedTuple):
    """Colour and marker of a model, so that no reading rests on colour alone."""

    colour: str
    marker: str


LOOKS = {
    "base": Look(BASE_COLOUR, "s"),
    "control": Look(CONTROL_COLOUR, "D"),
    "checkpoint": Look(EXTENDED_COLOUR, "o"),
}
_NOTE = "#6f685d"
LONGER = 3
"""Times by which an axis may be longer than what its nearer half of values takes."""


def context_axis(axes: Axes, lengths: Sequence[int], room: float = 0.0) -> None:
    """Lengths in tokens on a log scale; `room` is left on the right for the series' names, as a
    share of the axis."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [format_length(length) for length in lengths])
    axes.minorticks_off()
    span, room = (lengths[-1] / lengths[0], room) if len(lengths) > 1 else (2.0, 4 * room)
    axes.set_xlim(lengths[0] / span**0.05, lengths[-1] * span**0.05 * span**room)
    axes.set_xlabel("tokens of context")


def native_line(axes: Axes, native: int, named: bool = True) -> None:
    """Where the native window ends."""
    axes.axvline(native, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    if named:
        written = axes.annotate(
            f"native window {format_length(native)}",
            (native, 1),
            xycoords=("data", "axes fraction"),
            xytext=(5, -4),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=_NOTE,
        )
        written.set_in_layout(False)


def band(axes: Axes, scores: Mapping[int, Score], look: Look, line: str = "-") -> None:
    """Means joined by `line` with their 95 % band; a dashed line has hollow marks."""
    lengths = list(scores)
    mean, low, high = ([s[key] for s in scores.values()] for key in ("mean", "ci_low", "ci_high"))
    dashed = line != "-"
    alpha = 0.07 if dashed else 0.16
    axes.fill_between(lengths, low, high, color=look.colour, alpha=alpha, linewidth=0, zorder=2)
    axes.plot(
        lengths,
        mean,
        look.marker + line,
        color=look.colour,
        linewidth=1.6 if dashed else 2,
        markersize=5.5,
        markerfacecolor=axes.get_facecolor() if dashed else look.colour,
    )


def readable_end(values: Sequence[float], shown: Sequence[float] = ()) -> float:
    """Where an axis of `values` ends so that the far ones do not squash the others; what lies
    beyond is drawn at the end, with its number.

    Example: `readable_end([0.0, 0.1, 0.2, 0.3, 5.0])` → `0.3`

    Args:
        shown: values that must not lie beyond, whatever the others are.
    """
    ordered = sorted(values)
    low, middle = ordered[0], ordered[(len(ordered) - 1) // 2]
    # an axis three times as long still tells the nearer half apart
    reach = low + LONGER * (max([middle, *shown]) - low)
    return max([*(value for value in ordered if value <= reach), *shown])


class Name(NamedTuple):
    """What stands at the right end of a line."""

    text: str
    at: tuple[float, float]
    colour: str


def name_ends(axes: Axes, names: Sequence[Name], height_points: float) -> None:
    """Write each name beside the end of its line, moved apart where they would overlap.

    Args:
        height_points: the height of the axes in points, for how close two ends are.
    """
    low, high = axes.get_ylim()
    scale = height_points / (high - low)
    shifts = spread([name.at[1] * scale for name in names], 13)
    for name, shift in zip(names, shifts, strict=True):
        axes.annotate(
            name.text,
            name.at,
            xytext=(9, shift),
            textcoords="offset points",
            va="center",
            color=name.colour,
            fontsize=9,
            fontweight="bold",
        )


def spread(places: Sequence[float], apart: float) -> list[float]:
    """By how much each place must move so that neighbours keep `apart`; those that need not stay.

    Example: `spread([0, 4, 50], 12)` → `[-4.0, 4.0, 0.0]`
    """
    moved = [float(place) for place in places]
    order = sorted(range(len(moved)), key=lambda index: moved[index])
    for _ in range(50):
        for below, above in zip(order, order[1:], strict=False):
            overlap = apart - (moved[above] - moved[below])
            if overlap > 1e-9:
                moved[below] -= overlap / 2
                moved[above] += overlap / 2
    return [round(after - before, 3) for after, before in zip(moved, places, strict=True)]
