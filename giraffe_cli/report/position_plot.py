"""Loss along the longest window, by the position of the token."""

from __future__ import annotations

from matplotlib.figure import Figure

from giraffe_cli.report.axes import LOOKS, band, native_line
from giraffe_cli.report.figure import Plot, finish
from giraffe_cli.report.scored import Scored
from giraffe_cli.units import format_length

HEADROOM = 1.0
"""Of the checkpoint's own range: a base that collapses beyond that leaves the picture."""


def position_plot(scored: Scored, task: str) -> Plot | None:
    """The curve of the longest length that has one, every model that was read there."""
    lengths = scored.curve_lengths(task)
    if not lengths:
        return None
    length = lengths[-1]
    curves = {m: c for m in scored.models if (c := scored.curve(task, m, length))}
    figure = Figure(figsize=(6.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for model, curve in curves.items():
        look = LOOKS[model]._replace(marker="" if len(curve) > 24 else LOOKS[model].marker)
        band(axes, curve, look)
        axes.lines[-1].set_label(scored.name(model))
    tested = curves.get("checkpoint", {})
    if tested:
        low = min(score["ci_low"] for score in tested.values())
        high = max(score["ci_high"] for score in tested.values())
        top = high + HEADROOM * (high - low)
        leaves = [m for m, c in curves.items() if max(s["mean"] for s in c.values()) > top]
        if leaves:
            axes.set_ylim(min(low, axes.get_ylim()[0]), top)
            for model in leaves:
                line = axes.lines[[*curves].index(model)]
                line.set_label(f"{scored.name(model)}, rising beyond the picture")
    ticks = [*range(0, length + 1, max(1, length // 4))]
    axes.set_xticks(ticks, [format_length(tick) for tick in ticks])
    axes.set_xlim(0, length)
    if scored.native_length < length:
        native_line(axes, scored.native_length)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9)
    axes.set_title(f"Loss along a window of {format_length(length)}")
    axes.set_xlabel("position of the token")
    axes.set_ylabel("nats per token")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    told = "; ".join(
        f"{scored.name(m)} from {c[min(c)]['mean']:.2f} at the start to {c[max(c)]['mean']:.2f} "
        f"at {format_length(max(c))}"
        for m, c in curves.items()
    )
    return finish(figure, f"{task}_curve", f"Nats per token by position. {told}.")
