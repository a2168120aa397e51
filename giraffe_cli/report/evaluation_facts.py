"""Effective lengths, settings and identities of an evaluation as rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from giraffe_cli.evals.short_context import ABOUT
from giraffe_cli.report.numbers import Score
from giraffe_cli.report.score_tables import difference, level
from giraffe_cli.report.scored import Scored
from giraffe_cli.units import format_length, format_seconds

Row = tuple[str, str]


def reach_rows(scored: Scored) -> list[tuple[str, list[str]]]:
    """`(measure, effective length of each model and what it asks for)`, of what tasks mainly
    measure and of rankings."""
    rows = []
    for measure in scored.measures:
        if measure.partition(".")[2] not in ("", "ranked"):
            continue
        cells = [_reached(scored, measure, model) for model in scored.models]
        if set(cells) - {"–"}:
            rule = scored.measures[measure].get("effective_length", {}).get("rule", "")
            rows.append((measure, [*cells, rule]))
    return rows


def _reached(scored: Scored, measure: str, model: str) -> str:
    """The effective length in words; a dash where nothing within the native window says what to
    keep."""
    if not scored.has_reference(measure, model):
        return "–"
    length = scored.effective_length(measure, model)
    told = format_length(length) if length else "none"
    undecided = _undecided(scored, measure, model, length)
    return f"{told}, undecided at {format_length(undecided)}" if undecided else told


def _undecided(scored: Scored, measure: str, model: str, reached: int | None) -> int | None:
    """The next length, where the mean is what is asked for and its lower bound is not: too few
    samples to say that it is not reached."""
    rule = scored.measures[measure].get("effective_length", {})
    threshold, scores = rule.get("threshold"), scored.scores(measure, model)
    further = [n for n in scores if n > (reached or 0) and n >= scored.native_length]
    if threshold is None or not further:
        return None
    score = scores[further[0]]
    return further[0] if score["ci_low"] < threshold <= score["mean"] else None


def reach_rules(scored: Scored) -> list[str]:
    """The rules behind the effective lengths that are shown."""
    rules = scored.results.get("rules", {})
    shown = [measure for measure, _ in reach_rows(scored)]
    kinds = {
        "effective_length_mean": any(not scored.is_share(m) for m in shown),
        "effective_length_proportion": any(scored.is_share(m) for m in shown),
    }
    return [str(rules[name]) for name, used in kinds.items() if used and name in rules]


def short_rows(scored: Scored) -> list[tuple[str, str, str]]:
    """`(what, figure, small print)` of what changed within the native window."""
    found = scored.results.get("short_context", {})
    return [(ABOUT.get(name, name), *_short(name, found[name])) for name in ABOUT if name in found]


def _short(name: str, score: Score) -> tuple[str, str]:
    if name.startswith("kl"):
        cell = level(score, share=False)
    else:
        cell = difference(score, share=name in ("lambada", "hellaswag"))
    return cell.figure, ", ".join(cell.small)


def model_rows(scored: Scored) -> list[tuple[str, list[Row]]]:
    """What each model was: `(name, rows)`."""
    models = scored.results.get("models", {})
    order = [m for m in ("base", "control", "checkpoint", "evaluator") if m in models]
    read_by = scored.results.get("read_by", {})
    return [
        (scored.name(name), [*_identity(models[name]), *_readers(read_by.get(name, {}))])
        for name in order
    ]


def _readers(counts: Mapping[str, int]) -> Iterator[Row]:
    """What computed its scores; how many of them where that was not one alone."""
    told = [f"{r} ({n} samples)" if len(counts) > 1 else r for r, n in counts.items()]
    if told:
        yield "computed by", "; ".join(told)


def _identity(model: Mapping[str, Any]) -> Iterator[Row]:
    if model.get("sha256"):
        yield "sha256", str(model["sha256"])
    if model.get("dtype"):
        yield "computed in", str(model["dtype"])
    rope = model.get("rope", {})
    parameters = rope.get("rope_parameters") or rope.get("rope_scaling") or {}
    if rope:
        yield "RoPE in force", _rope(parameters)
    if "max_position_embeddings" in rope:
        yield "declared window", format_length(int(rope["max_position_embeddings"]))


def _rope(parameters: Mapping[str, Any]) -> str:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    knobs = [
        f"{name} {value:g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in parameters.items()
        if name not in ("rope_type", "type") and not isinstance(value, (list, Mapping))
    ]
    return ", ".join([str(kind), *knobs])


def setting_rows(scored: Scored) -> list[Row]:
    """All that must be equal for equal numbers."""
    results = scored.results
    if not results:
        return []
    settings = results.get("settings", {})
    documents = settings.get("documents", {})
    rows = [
        ("suite", str(results.get("suite", ""))),
        ("lengths", ", ".join(format_length(int(n)) for n in results.get("lengths", []))),
        ("native window", format_length(scored.native_length)),
        ("seed", str(results.get("seed", ""))),
        ("prompts", "chat template" if settings.get("chat") else "bare text, no chat template"),
    ]
    if documents:
        sizes = sorted(documents.values())
        rows.append(("documents given", f"{len(documents)}, {sizes[0]:,} to {sizes[-1]:,} tokens"))
    rows += [(name, _knobs(knobs)) for name, knobs in settings.get("tasks", {}).items()]
    if harness := settings.get("harness"):
        asked = f"{', '.join(harness['tasks'])}, {harness['samples']} samples at most"
        rows.append((f"lm-eval {harness['lm_eval']}", asked))
    rows += [(name, str(version)) for name, version in results.get("versions", {}).items()]
    if "seconds" in results:
        rows.append(("time", format_seconds(results["seconds"])))
    return [(name, value) for name, value in rows if value]


def _knobs(knobs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in knobs.items())
