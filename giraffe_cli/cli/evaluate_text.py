"""The tables of `giraffe eval`: one a task, its measures side by side as far as 80 columns go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.report.numbers import whole_percent
from giraffe_cli.units import format_length

WIDTH = 80
GAP = 2
"""Columns of space after each column of a table."""
DIFFERENCE = "difference"


def render(results: dict[str, Any]) -> list[RenderableType]:
    """For each task its tables and how far each model reaches; then what short context cost."""
    parts: list[RenderableType] = []
    for task, measures in by_task(results).items():
        parts += [*_tables(task, measures, results), *_notes(measures, results)]
        parts += map(escape, _contrasts(task, results))
        if task in measures and _goes_beyond(task, results):
            parts.append(escape(f"effective length: {_reached(task, results)}"))
        parts.append("")
    if results["short_context"]:
        parts += [_short_context(results), ""]
    if results.get("harness"):
        parts += [_harness(results), ""]
    return parts[:-1]


def by_task(results: dict[str, Any]) -> dict[str, list[str]]:
    """Task → its measures, as `measures` of the results lists them."""
    grouped: dict[str, list[str]] = {}
    for measure in results["measures"]:
        grouped.setdefault(measure.partition(".")[0], []).append(measure)
    return grouped


def _tables(task: str, measures: list[str], results: dict[str, Any]) -> Iterator[Table]:
    """As few tables as hold every measure, each at most `WIDTH` wide if one measure allows it."""
    left, title = list(measures), f"{task} by context length, 95% intervals"
    while left:
        taken = [left.pop(0)]
        while left and _width([*taken, left[0]], results) <= WIDTH:
            taken.append(left.pop(0))
        yield _table(title, taken, results)
        title = ""


def _width(measures: list[str], results: dict[str, Any]) -> int:
    rows = [_headings(measures, results), *_lines(measures, results)]
    return sum(GAP + max(map(len, column)) for column in zip(*rows, strict=True))


def _headings(measures: list[str], results: dict[str, Any]) -> list[str]:
    named = []
    for measure in measures:
        task, _, own = measure.partition(".")
        unit = results["measures"][measure]["unit"]
        named.append(f"{own or task}{f' ({unit})' if unit else ''}")
    return ["context", "model", *named, "n"]


def _lines(measures: list[str], results: dict[str, Any]) -> list[list[str]]:
    """Each model at each length, and with a base the paired difference; cells as `_headings`."""
    tables = {
        name: {m: model["tasks"][m] for m in measures if m in model["tasks"]}
        for name, model in results["models"].items()
    }
    paired = {m: results["paired"].get(m, {}).get("checkpoint_minus_base", {}) for m in measures}
    tables[DIFFERENCE] = paired
    scored = {int(n) for table in tables.values() for scores in table.values() for n in scores}
    lines = []
    for length in sorted(scored):
        shown = f"{format_length(length)}{'*' if length > results['native_length'] else ''}"
        for name, table in tables.items():
            scores = [table.get(m, {}).get(str(length)) for m in measures]
            if any(scores):
                sign = "+" if name == DIFFERENCE else ""
                kinds = (results["measures"][m]["kind"] for m in measures)
                cells = [cell(s, kind, sign) for s, kind in zip(scores, kinds, strict=True)]
                lines.append([shown, name, *cells, _counts(scores)])
                shown = ""
    return lines


def _counts(scores: Sequence[dict[str, Any] | None]) -> str:
    """`68`, or `68/40` where the measures have different numbers of samples."""
    return "/".join(dict.fromkeys(str(score["n"]) for score in scores if score))


def cell(score: dict[str, Any] | None, kind: str, sign: str = "") -> str:
    """`2.341 [2.301, 2.390]`; shares of 1 as `95 % [76, 99]`; `2.341` where one document has no
    interval; `-` where nothing was scored."""
    if score is None:
        return "-"
    mean, low, high = score["mean"], score["ci_low"], score["ci_high"]
    if score["clusters"] < 2 and low == high:
        return f"{mean:{sign}.3f}"
    if kind == "mean":
        return f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
    shown = [whole_percent(value, sign) for value in (mean, low, high)]
    return f"{shown[0]} % [{shown[1]}, {shown[2]}]"


def _table(title: str, measures: list[str], results: dict[str, Any]) -> Table:
    table = Table(title=title or None, title_justify="left", box=None, padding=(0, GAP, 0, 0))
    for heading in _headings(measures, results):
        justify: Literal["left", "right"] = "left" if heading == "model" else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    for line in _lines(measures, results):
        table.add_row(*map(escape, line))
    return table


def _notes(measures: list[str], results: dict[str, Any]) -> list[str]:
    """What the marks in a task's tables mean, one line or none."""
    notes, lines = list[str](), _lines(measures, results)
    if any(name == DIFFERENCE for _, name, *_ in lines):
        notes.append(f"{DIFFERENCE}: checkpoint - base, paired")
    if any("*" in context for context, *_ in lines):
        notes.append(f"*: beyond the native window of {format_length(results['native_length'])}")
    return ["; ".join(notes)] if notes else []


def _contrasts(task: str, results: dict[str, Any]) -> Iterator[str]:
    """`real minus shuffled at 16k, base: +0.02 [-0.01, +0.05]`."""
    from giraffe_cli.evals.base import tasks

    for name in tasks()[task].contrasts:
        scored = results["paired"].get(task, {}).get(name, {})
        longest = max(
            (length for scores in scored.values() for length in scores), key=int, default=""
        )
        for subject, scores in scored.items():
            if longest in scores:
                words = f"{name.replace('_', ' ')} at {format_length(int(longest))}"
                yield f"{words}, {subject}: {cell(scores[longest], 'mean', '+')}"


def _goes_beyond(task: str, results: dict[str, Any]) -> bool:
    """Whether a length beyond the native window was scored, and for a loss also one within it, so
    that reach means something."""
    scored = (model.get("tasks", {}).get(task, {}) for model in results["models"].values())
    beyond = {int(n) > results["native_length"] for lengths in scored for n in lengths}
    return beyond == {True, False} or (
        True in beyond and results["measures"][task]["kind"] != "mean"
    )


def _reached(task: str, results: dict[str, Any]) -> str:
    """The effective lengths in words, and what they ask for."""
    reached = []
    for name, model in results["models"].items():
        length = model["effective_length"].get(task)
        reached.append(f"{name} {format_length(length) if length else 'none shown'}")
    rule = results["measures"][task]["effective_length"]["rule"]
    return f"{', '.join(reached)} ({rule})"


def _harness(results: dict[str, Any]) -> Table:
    """Every task of lm-eval at every length, models side by side."""
    from giraffe_cli.report.scored import looks_like_shares

    found, version = results["harness"], results["settings"]["harness"]["lm_eval"]
    title = f"lm-eval {version}, 95% intervals"
    table = Table(title=title, title_justify="left", box=None, padding=(0, GAP, 0, 0))
    for heading in ("task", "context", *found, "n"):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    tasks = dict.fromkeys(task for scores in found.values() for task in scores)
    for task in tasks:
        scored = {length for scores in found.values() for length in scores.get(task, {})}
        for length in sorted(scored, key=int):
            scores = [model.get(task, {}).get(length) for model in found.values()]
            kind = "proportion" if looks_like_shares(s for s in scores if s) else "mean"
            cells = [escape(cell(score, kind)) for score in scores]
            table.add_row(task, format_length(int(length)), *cells, _counts(scores))
    return table


def render_gates(results: dict[str, Any]) -> list[RenderableType]:
    """A line for each gate, and an empty one after them."""
    from giraffe_cli.gates import Gate

    gates = [Gate(**gate) for gate in results["gates"]]
    lines = [f"gate {'passed' if g.ok else 'failed'}  {escape(g.sentence)}" for g in gates]
    return [*lines, *([""] if lines else [])]


def _short_context(results: dict[str, Any]) -> Table:
    """What was measured of `short_context`, a line each."""
    from giraffe_cli.evals.short_context import ABOUT

    native = format_length(results["native_length"])
    title = f"short context, up to {native}: checkpoint - base, 95% intervals"
    table = Table(title=title, title_justify="left", box=None, padding=(0, GAP, 0, 0))
    for heading in ("", "", "n"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, score in results["short_context"].items():
        kind = "proportion" if name in ("lambada", "hellaswag") else "mean"
        shown = cell(score, kind, "" if name.startswith("kl") else "+")
        table.add_row(ABOUT.get(name, name), escape(shown), str(score["n"]))
    return table
