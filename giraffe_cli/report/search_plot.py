"""How a search over RoPE tables went, and what it found, in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from giraffe_cli.report.axes import readable_end
from giraffe_cli.report.figure import (
    BASE_COLOUR,
    CARD,
    EXTENDED_COLOUR,
    FAINT,
    INK,
    STYLE,
    Plot,
    finish,
    literal,
)
from giraffe_cli.report.numbers import number, without_interval
from giraffe_cli.report.templates import sentence
from giraffe_cli.rope.base import strategies
from giraffe_cli.units import counted, format_length

Trial = Mapping[str, Any]
"""A row of `trials`: `number`, `loss` in nats, `stopped`, `origin`, `factors`."""
LOOKS = {
    "read to the end": ("o", EXTENDED_COLOUR, EXTENDED_COLOUR),
    "given up half-way": ("o", EXTENDED_COLOUR, CARD),
    "seeds": ("s", BASE_COLOUR, BASE_COLOUR),
}
"""Kind of trial → marker, colour, filling."""


def search_plot(search: Mapping[str, Any]) -> Plot | None:
    """The loss of every trial in order, and the divisors of the best beside its best seed's; None
    where nothing was tried.

    Args:
        search: content of `search.json`.
    """
    if not search["trials"]:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.2, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
        _trials(left, search)
        _divisors(right, search)
        title = literal(sentence(proof(search))).strip()
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        return finish(figure, "rope_search", _alt(search))


def proof(search: Mapping[str, Any]) -> str:
    """`best minus best seed (yarn) on 8 other samples: −0.032 nats (−0.070 to +0.008), not …`."""
    seed, score = search["best_seed"], search["held_out"]["minus_seed"]
    if search["best"]["number"] == seed["number"]:
        return f"nothing better than {seed['origin']} was found"
    judged = "better" if search["improved"] else "not shown to be better"
    mean, low, high = (number(score[key], 3, sign=True) for key in ("mean", "ci_low", "ci_high"))
    ends = "(no interval)" if without_interval(score) else f"({low} to {high})"
    return (
        f"best minus best seed ({seed['origin']}) on {counted(score['n'], 'other sample')}: {mean} "
        f"nats {ends}, {judged}"
    )


def kind_of(trial: Trial) -> str:
    """Key of `LOOKS`: a seed bears the name of its strategy."""
    if trial["origin"] in strategies():
        return "seeds"
    return "given up half-way" if trial["stopped"] else "read to the end"


def _trials(axes: Axes, search: Mapping[str, Any]) -> None:
    trials, best = search["trials"], search["best"]
    end = readable_end([trial["loss"] for trial in trials], [search["best_seed"]["loss"]])
    whole = [(t["number"], t["loss"]) for t in trials if not t["stopped"]]
    steps = [*itertools.accumulate((loss for _, loss in whole), min)]
    axes.step([n for n, _ in whole], steps, where="post", color=FAINT, label="best so far")
    for kind, (marker, colour, face) in LOOKS.items():
        found = [trial for trial in trials if kind_of(trial) == kind]
        near = [trial for trial in found if trial["loss"] <= end]
        far = [trial["number"] for trial in found if trial["loss"] > end]
        style: Any = {"color": colour, "markerfacecolor": face, "linestyle": "", "markersize": 5.5}
        if found:
            places, losses = [t["number"] for t in near], [t["loss"] for t in near]
            axes.plot(places, losses, marker=marker, label=kind, **style)
            axes.plot(far, [end] * len(far), marker="^", **style)
    axes.plot(best["number"], best["loss"], "o", mfc="none", mec=INK, markersize=11, label="best")
    axes.margins(y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Loss of each table, in the order tried")
    axes.set_xlabel("trial")
    clipped = any(trial["loss"] > end for trial in trials)
    axes.set_ylabel("nats per token" + f" (▲ lies beyond {number(end, 2)})" * clipped)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.legend(
        frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3
    )


def _divisors(axes: Axes, search: Mapping[str, Any]) -> None:
    shown = ("best_seed", "s--", BASE_COLOUR), ("best", "o-", EXTENDED_COLOUR)
    for key, line, colour in shown:
        trial = search[key]
        name = literal(f"{key.replace('_', ' ')}: {trial['origin']}")
        name += f", attention {trial['attention_factor']:.3f}"
        axes.plot(trial["factors"], line, color=colour, markersize=4, linewidth=1.4, label=name)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axhline(
        search["target_length"] / search["native_length"], color=FAINT, linewidth=0.9, linestyle=":"
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("What each frequency is divided by")
    axes.set_xlabel("pair (0 turns fastest)")
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _alt(search: Mapping[str, Any]) -> str:
    trials, best, seed = search["trials"], search["best"], search["best_seed"]
    counts = {kind: sum(kind_of(trial) == kind for trial in trials) for kind in LOOKS}
    seeds = [f"{t['origin']} {number(t['loss'], 3)}" for t in trials if kind_of(t) == "seeds"]
    divisors = "; ".join(
        f"{name} {', '.join(f'{factor:.3g}' for factor in trial['factors'])}"
        for name, trial in (("best", best), ("best seed", seed))
    )
    return (
        f"Loss at {format_length(search['target_length'])} of {len(trials)} tables in the order "
        f"tried, {counts['given up half-way']} of them given up half-way. Seeds: "
        f"{', '.join(seeds)}. Best: {number(best['loss'], 3)} nats, trial {best['number']}, "
        f"{best['origin']}. {sentence(proof(search))}. Divisors by pair, fastest first: "
        f"{divisors}."
    )
