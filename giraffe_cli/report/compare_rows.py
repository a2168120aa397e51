"""Compared runs and evaluations as rows of text, a column for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from giraffe_cli.report.compare import Entry
from giraffe_cli.report.compare_settings import differing_settings, setting_rows
from giraffe_cli.report.numbers import ABSENT, Score, number, proportion, with_half_width
from giraffe_cli.report.scored import MODELS
from giraffe_cli.units import format_bytes, format_length, format_seconds


def rows(entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """`(what, one cell an entry)`; what no entry knows is left out.

    Raises:
        InvalidInput: a `run.yaml` cannot be read.
    """
    table = [(what, [_cell(show, entry) for entry in entries]) for what, show in _FACTS]
    table += setting_rows(differing_settings(entries))
    for measure in dict.fromkeys(name for entry in entries for name in entry.scores):
        if measure.partition(".")[2] in IN_JSON_ALONE:
            continue
        share = any(measure in entry.shares for entry in entries)
        table += _score_rows(entries, measure, _share if share else with_half_width)
    table += [(what, [_cell(show, entry) for entry in entries]) for what, show in _COSTS]
    return [(what, cells) for what, cells in table if set(cells) != {ABSENT}]


def status(entry: Entry) -> str:
    """`finished`, or how far it has come."""
    if entry.kind == "evaluation":
        return "evaluation"
    if entry.finished:
        return "finished"
    return f"unfinished: {entry.steps} of {entry.planned_steps} steps"


def _reach(entry: Entry) -> str | None:
    if not entry.target_length:
        return None
    stops = [entry.native_length, *(entry.targets or [entry.target_length])]
    return " → ".join(format_length(length) for length in stops if length)


def _evaluated(protocol: Mapping[str, Any]) -> str | None:
    """`quick, seed 0, float32`."""
    if not protocol:
        return None
    return f"{protocol['suite']}, seed {protocol['seed']}, {protocol['dtype']}"


def _gates(entry: Entry) -> str | None:
    if not entry.gates:
        return None
    return f"{sum(bool(gate['ok']) for gate in entry.gates)} of {len(entry.gates)} passed"


IN_JSON_ALONE = ("exact", "bits-per-byte")
"""Measures that say again what another row says: `--json` has them."""
Show = Callable[[Entry], str | None]
_FACTS: list[tuple[str, Show]] = [
    ("status", status),
    ("model", lambda e: e.model),
    ("strategy", lambda e: e.strategy),
    ("context", _reach),
    ("steps", lambda e: None if e.steps is None else f"{e.steps:,}"),
    ("trained tokens", lambda e: None if e.trained_tokens is None else f"{e.trained_tokens:,}"),
    ("training loss", lambda e: None if e.final_loss is None else number(e.final_loss, 3)),
    ("held-out loss", lambda e: None if e.held_out_nll is None else number(e.held_out_nll, 3)),
    ("evaluated", lambda e: _evaluated(e.protocol)),
]
_COSTS: list[tuple[str, Show]] = [
    ("time", lambda e: format_seconds(e.seconds) if e.seconds else None),
    ("peak memory", lambda e: format_bytes(e.peak_memory_bytes) if e.peak_memory_bytes else None),
    ("gates", _gates),
]


def _cell(show: Show, entry: Entry) -> str:
    return show(entry) or ABSENT


def _score_rows(
    entries: Sequence[Entry], measure: str, show: Callable[[Score | None], str]
) -> Iterable[tuple[str, list[str]]]:
    """A row for each model and length that any entry scored."""
    tables = [entry.scores.get(measure, {}) for entry in entries]
    lengths = sorted({n for table in tables for scores in table.values() for n in scores})
    for length in lengths:
        for model in MODELS:
            found = [table.get(model, {}).get(length) for table in tables]
            if any(found):
                yield f"{measure} {model} {format_length(length)}", [show(s) for s in found]


def _share(score: Score | None) -> str:
    return proportion(score, unit="")
