"""The scores of an evaluation as tables, one for each task: measures as groups, lengths as rows.

passkey     context    base        extended      extended − base
generated   1k         100%        100%          0
                       84 to 100%  84 to 100%    −16 to +16
                       n 20        n 20          n 20, p 1.00
ranked      1k         ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from giraffe_cli.report import numbers
from giraffe_cli.report.figure import Plot
from giraffe_cli.report.numbers import ABSENT, Score
from giraffe_cli.report.scored import Scored, describe_task, looks_like_shares
from giraffe_cli.units import format_length

_CONTRASTS = {
    "length_minus_native": "the same words, minus those at {native}",
    "real_minus_shuffled": "far text in order, minus far text shuffled",
}
"""Titles of the paired differences that each model has of its own; others say their name."""


@dataclass(frozen=True)
class Cell:
    """A figure, and in small print its interval, and n with p."""

    figure: str
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One length."""

    length: int
    cells: list[Cell]


@dataclass(frozen=True)
class Group:
    """The rows of one measure or contrast."""

    title: str
    note: str
    rows: list[Row]


@dataclass(frozen=True)
class TaskTable:
    """Everything that one task measured."""

    task: str
    summary: str
    source: str
    headline: str
    """What came out at the longest length, in one line."""
    headings: list[str]
    groups: list[Group]
    is_share: bool
    """Whether what it mainly measures is in percent."""
    plots: list[Plot] = field(default_factory=list)


def task_tables(scored: Scored, plots: Mapping[str, list[Plot]]) -> list[TaskTable]:
    """A table for every task, in the order they were run, and one of lm-eval's; `plots` by task."""
    own = [_table(scored, task, plots.get(task, [])) for task in scored.tasks]
    return [*own, *([_harness(scored)] if scored.harness else [])]


def _table(scored: Scored, task: str, plots: list[Plot]) -> TaskTable:
    measures = scored.tasks[task]
    models = [m for m in scored.models if any(scored.scores(name, m) for name in measures)]
    against = [m for m in models if m != "checkpoint" and "checkpoint" in models]
    summary, source = describe_task(task)
    groups = [_measure(scored, measure, models, against) for measure in measures]
    groups += [
        group for measure in measures for group in _contrasts(scored, measure, models, against)
    ]
    return TaskTable(
        task=task,
        summary=summary,
        source=source,
        headline=headline(scored, measures[0]),
        headings=[
            *map(scored.name, models),
            *(f"{scored.tested} − {model}" for model in against),
        ],
        groups=groups,
        is_share=scored.is_share(measures[0]),
        plots=plots,
    )


def _harness(scored: Scored) -> TaskTable:
    """lm-eval's tasks as the groups of one table; its samples are its own, so nothing is paired."""
    models = [m for m in scored.models if any(m in found for found in scored.harness.values())]
    settings = scored.results["settings"]["harness"]
    groups = []
    for task, found in scored.harness.items():
        share = looks_like_shares(s for scores in found.values() for s in scores.values())
        columns = [{n: level(s, share) for n, s in found.get(m, {}).items()} for m in models]
        note = "lm-eval's score, by its own prompts"
        groups.append(Group(task, note, _rows(columns)))
    return TaskTable(
        task="lm-eval",
        summary=f"its own tasks on the same models, version {settings['lm_eval']}",
        source="EleutherAI lm-evaluation-harness",
        headline="",
        headings=[scored.name(model) for model in models],
        groups=groups,
        is_share=True,
    )


def headline(scored: Scored, measure: str) -> str:
    """`90% at 16k, base 0%`."""
    tested = scored.scores(measure, "checkpoint")
    if not tested:
        return ""
    longest = max(tested)
    base = scored.scores(measure, "base").get(longest)
    share = scored.is_share(measure)
    said = f"{level(tested[longest], share).figure} at {format_length(longest)}"
    return f"{said}, base {level(base, share).figure}" if base else said


def _measure(scored: Scored, measure: str, models: list[str], against: list[str]) -> Group:
    """Scores by length, with the differences to what the checkpoint is held against."""
    share, about = scored.is_share(measure), scored.measures[measure]
    columns = [{n: level(s, share) for n, s in scored.scores(measure, m).items()} for m in models]
    columns += [
        {
            n: difference(s, share)
            for n, s in scored.differences(measure, f"checkpoint_minus_{model}").items()
        }
        for model in against
    ]
    chance = f"; by chance {numbers.percent(about['chance'])}" if about.get("chance") else ""
    unit = f", {about['unit']}" if about.get("unit") else ""
    better = "higher is better" if about["higher_is_better"] else "lower is better"
    kind = measure.partition(".")[2] or ("generated" if share else measure)
    return Group(kind, f"{about['summary']}{unit}; {better}{chance}", _rows(columns))


def _contrasts(
    scored: Scored, measure: str, models: list[str], against: list[str]
) -> Iterator[Group]:
    """The paired differences that each model has of its own; of shares none, whose samples differ
    from length to length."""
    if scored.is_share(measure):
        return
    native = format_length(scored.native_length)
    for name in scored.contrasts(measure):
        columns = [
            {
                n: difference(s, False)
                for n, s in scored.differences(measure, name, m).items()
                if n != scored.native_length or name != "length_minus_native"
            }
            for m in models
        ]
        if any(columns) and (name != "length_minus_native" or "." not in measure):
            title = _CONTRASTS.get(name, name.replace("_", " ")).format(native=native)
            yield Group(title, "below 0: it helps", _rows([*columns, *({} for _ in against)]))


def _rows(columns: list[dict[int, Cell]]) -> list[Row]:
    lengths = sorted({length for column in columns for length in column})
    absent = Cell(ABSENT)
    return [
        Row(n, [column.get(n, absent) if column else Cell("") for column in columns])
        for n in lengths
    ]


def level(score: Score, share: bool) -> Cell:
    """A model's own score."""
    if share:
        figure, bounds = numbers.percent(score["mean"]), numbers.share_interval(score)
    else:
        figure, bounds = numbers.with_half_width(score, alone=False), numbers.interval(score)
    return Cell(figure, (bounds, f"n {numbers.samples(score)}"))


def difference(score: Score, share: bool) -> Cell:
    """A paired difference; of shares in points."""
    if share:
        figure, bounds = numbers.points(score), numbers.points_interval(score)
    else:
        figure = numbers.with_half_width(score, sign=True, alone=False)
        bounds = numbers.interval(score, sign=True)
    p = numbers.p_value(score)
    return Cell(figure, (bounds, f"n {numbers.samples(score)}{', ' + p if p else ''}"))
