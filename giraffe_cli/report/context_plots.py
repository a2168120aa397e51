"""Loss by context length: the levels of every model, and the gain over the native window."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from giraffe_cli.report.axes import LOOKS, Name, band, context_axis, name_ends, native_line
from giraffe_cli.report.figure import EXTENDED_COLOUR, FAINT, Plot, finish
from giraffe_cli.report.numbers import Score, number
from giraffe_cli.report.scored import Scored
from giraffe_cli.units import format_length

_PAIRED = ((0.985, "-", EXTENDED_COLOUR), (1.015, ":", "#8c4a9e"))
"""Shift along the axis, so that intervals stand side by side; line; colour."""


def nll_plot(scored: Scored) -> Plot | None:
    """Bands of base, control and checkpoint, and dashed what is left when far text is shuffled."""
    series = [(scored.name(m), m, "-", scored.scores("nll", m)) for m in scored.models]
    shuffled = scored.scores("nll.shuffled", "checkpoint")
    series.append(("far text shuffled", "checkpoint", "--", shuffled))
    series = [entry for entry in series if entry[-1]]
    if not series:
        return None
    figure = Figure(figsize=(6.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    lengths = sorted({scored.native_length, *(n for *_, scores in series for n in scores)})
    context_axis(axes, lengths, room=0.3)
    for _, model, line, scores in series:
        band(axes, scores, LOOKS[model], line)
    native_line(axes, scored.native_length)
    name_ends(axes, [_name(*entry) for entry in series], height_points=215)
    axes.set_title("Loss on the same words, by context before them")
    axes.set_ylabel("nats per token (lower is better)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    told = "; ".join(f"{name}: {_told(scores)}" for name, _, _, scores in series)
    return finish(figure, "nll_by_context", f"Nats per token by context length. {told}.")


def gain_plot(scored: Scored) -> Plot | None:
    """Paired differences of the checkpoint: to its native window, and to shuffled far text."""
    native = format_length(scored.native_length)
    series = [
        (f"over {native}", "o", scored.differences("nll", "length_minus_native", "checkpoint")),
        ("over shuffled", "v", scored.differences("nll", "real_minus_shuffled", "checkpoint")),
    ]
    beyond = [n for n in scored.lengths("nll") if n > scored.native_length]
    series = [entry for entry in series if set(entry[-1]) & set(beyond)]
    if not series:
        return None
    figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.margins(y=0.12)  # the name of the native window stands above the line at 0
    axes.axhline(0, color=FAINT, linewidth=1)
    lengths = sorted({scored.native_length, *(n for *_, scores in series for n in scores)})
    context_axis(axes, lengths, room=0.36)
    names = []
    for (name, marker, scores), (shift, line, colour) in zip(series, _PAIRED, strict=False):
        mean = [score["mean"] for score in scores.values()]
        below = [s["mean"] - s["ci_low"] for s in scores.values()]
        above = [s["ci_high"] - s["mean"] for s in scores.values()]
        axes.errorbar(
            [length * shift for length in scores],
            mean,
            (below, above),
            fmt=marker + line,
            color=colour,
            capsize=3.5,
            linewidth=1.4,
            markersize=5.5,
        )
        end = f"{name} {number(mean[-1], 3, sign=True)}"
        names.append(Name(end, (max(scores), mean[-1]), colour))
    native_line(axes, scored.native_length)
    name_ends(axes, names, height_points=170)
    axes.set_title(f"What far text is worth to {scored.subject}, word by word")
    axes.set_ylabel("nats per token (below 0: it helps)")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    told = "; ".join(f"{name}: {_told(scores, 3)}" for name, _, scores in series)
    return finish(figure, "nll_gain_by_context", f"Paired differences in nats per token. {told}.")


def _name(name: str, model: str, _: str, scores: Mapping[int, Score]) -> Name:
    last = max(scores)
    mean = scores[last]["mean"]
    return Name(f"{name} {mean:.2f}", (last, mean), LOOKS[model].colour)


def _told(scores: Mapping[int, Score], digits: int = 2) -> str:
    return ", ".join(
        f"{number(s['mean'], digits, sign=digits > 2)} at {format_length(n)}"
        for n, s in scores.items()
    )
