"""The pictures of a comparison: training curves and loss by context, one line a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from giraffe_cli.evals.measures import measure_name
from giraffe_cli.report.axes import Look
from giraffe_cli.report.compare import Entry
from giraffe_cli.report.figure import FAINT, LONG_NAME, STYLE, Plot, finish, literal
from giraffe_cli.report.loss_plot import running_mean, series
from giraffe_cli.report.numbers import Score
from giraffe_cli.report.retrieval_plot import KINDS, Series, panels
from giraffe_cli.units import format_length

COLOURS = ("#1f5fa8", "#c2570c", "#3a7d44", "#8a4fa3", "#a8323f", "#6f685d", "#b58900", "#2a9d9d")
"""Told apart by marker and dash too, so that no reading rests on colour alone."""
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")


def compare_plots(entries: Sequence[Entry]) -> list[Plot]:
    """The figures whose numbers exist, in reading order."""
    with matplotlib.rc_context(STYLE):
        plots = [
            _losses(entries),
            _retrieval(entries, ""),
            _retrieval(entries, "ranked"),
            _training(entries),
        ]
    return [plot for plot in plots if plot is not None]


def _style(number: int) -> tuple[str, str]:
    """Colour, and marker with dash, of the `number`-th entry."""
    dash = DASHES[(number // len(COLOURS)) % len(DASHES)]
    return COLOURS[number % len(COLOURS)], f"{MARKERS[number % len(MARKERS)]}{dash}"


def _losses(entries: Sequence[Entry]) -> Plot | None:
    found = [(n, entry, _of(entry, "checkpoint")) for n, entry in enumerate(entries)]
    scored = [(number, entry, scores) for number, entry, scores in found if scores]
    if not scored:
        return None
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    base = _common_base(entries)
    lengths = sorted({n for _, _, scores in scored for n in scores} | {*base})
    for number, entry, scores in scored:
        _line(axes, scores, literal(entry.name), *_style(number))
    if base:
        # a base that collapses would press the runs into one line
        low, high = axes.get_ylim()
        top = high + (high - low)
        leaves = max(score["mean"] for score in base.values()) > top
        _line(axes, base, "base, rising beyond" if leaves else "base", FAINT, "x:")
        if leaves:
            axes.set_ylim(low, top)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [format_length(length) for length in lengths])
    axes.minorticks_off()
    axes.set_title("Loss on the same words, by context before them")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("nats per token (lower is better)")
    axes.grid(axis="y")
    _legend(axes)
    told = "; ".join(
        f"{entry.name}: "
        + ", ".join(f"{s['mean']:.2f} at {format_length(n)}" for n, s in scores.items())
        for _, entry, scores in scored
    )
    return finish(figure, "nll_by_context", f"Nats per token by context length. {told}.")


def _of(entry: Entry, model: str) -> Mapping[int, Score]:
    """The entry's loss by length."""
    return entry.scores.get("nll", {}).get(model, {})


def _retrieval(entries: Sequence[Entry], kind: str) -> Plot | None:
    """Every task that asks for something out of the context, a line an entry."""
    shares = dict.fromkeys(measure for entry in entries for measure in entry.shares)
    tasks = [task for task in shares if measure_name(task, "ranked") in shares]
    series = []
    for number, entry in enumerate(entries):
        colour, line = _style(number)
        by_model = {task: entry.scores.get(measure_name(task, kind), {}) for task in tasks}
        found = {task: models["checkpoint"] for task, models in by_model.items() if models}
        if found:
            series.append(Series(entry.name, Look(colour, line[0]), line[1:], found))
    natives = {entry.native_length for entry in entries}
    native = natives.pop() if len(natives) == 1 else None
    chance = dict.fromkeys(tasks, 0.1 if kind == "ranked" else 0.0)
    return panels(series, chance, native, f"retrieval_{kind or 'generated'}", KINDS[kind])


def _common_base(entries: Sequence[Entry]) -> Mapping[int, Score]:
    """The base's scores where all entries that have some agree on them."""
    found = [scores for entry in entries if (scores := _of(entry, "base"))]
    return found[0] if found and all(scores == found[0] for scores in found) else {}


def _line(axes: Axes, scores: Mapping[int, Score], name: str, colour: str, line: str) -> None:
    lengths = list(scores)
    mean, low, high = ([s[key] for s in scores.values()] for key in ("mean", "ci_low", "ci_high"))
    axes.fill_between(lengths, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.plot(lengths, mean, line, color=colour, linewidth=1.8, markersize=5.5, label=name)


def _training(entries: Sequence[Entry]) -> Plot | None:
    curves = [(n, e, series(e.metrics, "loss")) for n, e in enumerate(entries)]
    curves = [(number, entry, curve) for number, entry, curve in curves if curve]
    if not curves:
        return None
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, entry, curve in curves:
        steps, values = (np.array(column) for column in zip(*curve, strict=True))
        colour, line = _style(number)
        smooth = running_mean(values, max(1, len(values) // 10))
        name = literal(entry.name if entry.finished else f"{entry.name} (unfinished)")
        axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.9)
        every = max(1, len(values) // 8)
        (drawn,) = axes.plot(steps, smooth, line, color=colour, markevery=every, label=name)
        drawn.set(linewidth=1.8, markersize=5)
        for border in entry.borders[1:]:
            axes.axvline(border.step + 0.5, color=colour, alpha=0.5, linewidth=1, linestyle=":")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Training loss: each step, and the mean of the last tenth")
    axes.set_xlabel("optimiser step (dotted: a stage begins)")
    axes.set_ylabel("nats per token")
    axes.grid(axis="y")
    _legend(axes)
    told = "; ".join(f"{e.name}: {c[0][1]:.2f} to {c[-1][1]:.2f}" for _, e, c in curves)
    return finish(figure, "training_loss", f"Training loss by step. {told}.")


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if max(map(len, labels), default=0) > LONG_NAME:  # beside the axes it would take their room
        figure = axes.figure
        assert isinstance(figure, Figure)
        figure.legend(handles, labels, frameon=False, fontsize=8.5, loc="outside lower left")
        return
    axes.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0))
