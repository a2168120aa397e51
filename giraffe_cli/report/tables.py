"""The tables the console ends with: every model by context length, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.report.numbers import ABSENT, Score, whole_percent, with_half_width
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdict import Verdict
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.report.verdicts_retrieval import judged
from giraffe_cli.units import format_length

_STYLES = {"yes": "green", "no": "red", "not shown": "yellow", "not measured": "dim"}
WIDTH = 80


def summary_table(report: Mapping[str, Any], place: Path | None = None) -> list[RenderableType]:
    """The scores by length, the verdicts as sentences, and where everything lies: in `place`, where
    that is not the folder that the run was written in."""
    folder, model = place or Path(report["run_dir"]), Path(report["model_dir"])
    if place is not None and (place / model.name).is_dir():
        model = place / model.name
    native, target = (format_length(report[key]) for key in ("native_length", "target_length"))
    title = f"{report.get('model', 'model')}: {native} → {target} ({report['strategy']})"
    parts: list[RenderableType] = [*score_tables(Scored.of_run(report), title)]
    parts = parts or [escape(title), ""]
    parts += [_line(verdict) for verdict in run_verdicts(report)]
    parts += [
        "",
        f"model   {escape(str(model))}",
        f"report  {escape(str(folder))}/report.html",
    ]
    return parts


def score_tables(scored: Scored, title: str) -> list[Table]:
    """The loss and the retrieval tasks, whichever were scored; the title stands over the first."""
    tables = [_loss_table(scored)] if scored.lengths("nll") else []
    tables += [_retrieval_table(scored)] if scored.retrieval() else []
    for table in tables[:1]:
        table.title = escape(title)
    return tables


def _blank(caption: str) -> Table:
    return Table(caption=caption, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)


def _loss_table(scored: Scored) -> Table:
    """Lengths as rows; losses with the half-width of their 95 % interval."""
    table = _blank(
        "nll in nats per token, lower is better; ± half of the 95% interval\n"
        "* beyond the native window"
    )
    models = [model for model in scored.models if scored.scores("nll", model)]
    gains = scored.differences("nll", "checkpoint_minus_base")
    headings = [f"nll\n{scored.name(model)}" for model in models]
    for heading in ("context", *headings, *(["extended\n− base"] if gains else []), "n"):
        table.add_column(heading, justify="right")
    for length in scored.lengths("nll"):
        found = [scored.scores("nll", model).get(length) for model in models]
        gain = [with_half_width(gains.get(length), sign=True)] if gains else []
        count = str(next(score["n"] for score in reversed(found) if score))
        table.add_row(_length(scored, length), *map(with_half_width, found), *gain, count)
    return table


def _retrieval_table(scored: Scored) -> Table:
    """Tasks and models as rows, as many of the longest lengths as fit as columns."""
    measures = [judged(scored, task) for task in scored.retrieval()]
    lengths = sorted({n for measure in measures for n in scored.lengths(measure)})
    used = max(map(len, measures)) + max(len(scored.name(m)) for m in scored.models) + 10
    shown = _most_telling(lengths, scored.native_length, max(1, (WIDTH - used) // 13))
    table = _blank(
        "% right with its 95% interval: generated, or ranked where small models write none\n"
        f"* beyond the native window{'; other lengths: report.html' * (shown != lengths)}"
    )
    table.add_column("retrieval")
    for heading in ("", *(_length(scored, length) for length in shown), "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    for measure in measures:
        named = measure
        for model in scored.models:
            if scores := scored.scores(measure, model):
                cells = [_percent(scores.get(length)) for length in shown]
                table.add_row(escape(named), scored.name(model), *cells, _counts(scores))
                named = ""
    return table


def _most_telling(lengths: list[int], native: int, room: int) -> list[int]:
    """The longest length within the native window, and the longest ones beyond it."""
    if len(lengths) <= room:
        return lengths
    within = [n for n in lengths if n <= native][-1:]
    return [*within, *[n for n in lengths if n not in within][-max(0, room - len(within)) :]]


def _length(scored: Scored, length: int) -> str:
    return f"{format_length(length)}{'*' if length > scored.native_length else ''}"


def _percent(score: Score | None) -> str:
    """`90 (70-97)`."""
    if score is None:
        return ABSENT
    mean, low, high = (whole_percent(score[key]) for key in ("mean", "ci_low", "ci_high"))
    return f"{mean} ({low}-{high})"


def _counts(scores: Mapping[int, Score]) -> str:
    """Samples at a length: `16`, or `12-16`."""
    counts = sorted({int(score["n"]) for score in scores.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def _line(verdict: Verdict) -> str:
    """The answer in words and, on a terminal, in colour as well."""
    style = "default" if verdict.about_base else _STYLES[verdict.answer]
    figures = f", {escape(verdict.figures)}" if verdict.figures else ""
    return f"{escape(verdict.claim)}: [{style}]{verdict.answer}[/]{figures}"
