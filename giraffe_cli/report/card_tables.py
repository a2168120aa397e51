"""The scores of an evaluation as Markdown, for the model card."""

from __future__ import annotations

from collections.abc import Iterator

from giraffe_cli.report.numbers import Score, proportion, with_half_width
from giraffe_cli.report.scored import Scored, describe_task, looks_like_shares
from giraffe_cli.units import format_length

_READING = (
    "Loss in nats per token, lower is better: the same tokens at every length, with more text "
    "before them. ± is half of the 95% interval. "
    "A gain over the base at the native length is {}, not length."
)
_SHUFFLED = (
    " Far text shuffled: the same words with everything further back than the native window in "
    "random order; a model that reads that far does worse on it."
)
_OTHERS = (
    "Share right with its 95% interval, or nats ± half of the interval; n samples at each length."
)
_CONTROL = (
    " The control was trained on the same text within the native window, without scaling: its gain "
    "is that domain."
)


def markdown_tables(scored: Scored) -> list[str]:
    """Paragraphs: the loss by length, every other measure by length, and their protocols."""
    parts = []
    if scored.lengths("nll"):
        shuffled = _SHUFFLED if scored.scores("nll.shuffled", "checkpoint") else ""
        control = _CONTROL if "control" in scored.models else ""
        gain = "the training text's domain" if scored.trained else "the table's"
        parts += [_loss_table(scored), _READING.format(gain) + shuffled + control]
    others = [m for m in scored.measures if not m.startswith("nll") and scored.lengths(m)]
    if others:
        parts += [_other_table(scored, others), _OTHERS, "\n".join(_protocols(scored, others))]
    if scored.harness:
        version = scored.results["settings"]["harness"]["lm_eval"]
        parts += [f"lm-eval {version} on the same models, by its own prompts:", _harness(scored)]
    return parts


def _table(rows: list[list[str]], named: int) -> str:
    """`named` columns of words on the left, the others are figures."""
    rule = ["---"] * named + ["---:"] * (len(rows[0]) - named)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))


def _loss_table(scored: Scored) -> str:
    models = [m for m in scored.models if scored.scores("nll", m)]
    shuffled = scored.scores("nll.shuffled", "checkpoint")
    header = ["context", *(f"loss {scored.name(model)}" for model in models)]
    rows = [[*header, *(["far text shuffled"] if shuffled else []), "n"]]
    for length in scored.lengths("nll"):
        found = [scored.scores("nll", model).get(length) for model in models]
        figures = [*found, shuffled.get(length)] if shuffled else found
        rows.append(
            [
                _length(scored, length),
                *map(with_half_width, figures),
                str(next(s["n"] for s in reversed(found) if s)),
            ]
        )
    return _table(rows, named=0)


def _other_table(scored: Scored, measures: list[str]) -> str:
    lengths = sorted({n for measure in measures for n in scored.lengths(measure)})
    rows = [["measure", "model", *(_length(scored, n) for n in lengths), "n"]]
    for measure in measures:
        for model in scored.models:
            scores = scored.scores(measure, model)
            if scores:
                cells = [_cell(scored, measure, scores.get(n)) for n in lengths]
                rows.append([measure, scored.name(model), *cells, _counts(scores)])
    return _table(rows, named=2)


def _harness(scored: Scored) -> str:
    """lm-eval's tasks; a metric of another kind than a share has its half-width instead."""
    by_model = [(task, m, f[m]) for task, f in scored.harness.items() for m in f]
    lengths = sorted({n for _, _, scores in by_model for n in scores})
    rows = [["task", "model", *(_length(scored, n) for n in lengths), "n"]]
    for task, model, scores in by_model:
        shown = proportion if looks_like_shares(scores.values()) else with_half_width
        cells = [shown(scores.get(n)) for n in lengths]
        rows.append([task, scored.name(model), *cells, _counts(scores)])
    return _table(rows, named=2)


def _cell(scored: Scored, measure: str, score: Score | None) -> str:
    return proportion(score) if scored.is_share(measure) else with_half_width(score)


def _counts(scores: dict[int, Score]) -> str:
    counts = sorted({int(score["n"]) for score in scores.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _length(scored: Scored, length: int) -> str:
    return f"{format_length(length)}{' (native)' if length == scored.native_length else ''}"


def _protocols(scored: Scored, measures: list[str]) -> Iterator[str]:
    for task in dict.fromkeys(measure.partition(".")[0] for measure in measures):
        summary, source = describe_task(task)
        kinds = [
            f"{m.partition('.')[2] or 'main'}: {scored.measures[m]['summary']}"
            for m in scored.tasks[task]
        ]
        named = f": {summary} ({source})" if summary else ""
        yield f"- {task}{named}; {'; '.join(kinds)}"
