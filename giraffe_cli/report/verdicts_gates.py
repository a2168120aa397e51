"""Quality gates as a verdict: a failed one is what a reader has to know first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from giraffe_cli.gates import Difference, Gate, Reach, Short, Side, parse_gate
from giraffe_cli.report.numbers import number
from giraffe_cli.report.verdict import Verdict
from giraffe_cli.units import format_length

CLAIM = "passes its quality gates"
AS_WORDS = {"<": "below", "<=": "at most", ">": "above", ">=": "at least"}


def with_gates(verdicts: Sequence[Verdict], gates: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """`verdicts`, before them that of failed gates, behind them that of passed ones; as they are
    where nothing was tested."""
    keys = [field.name for field in fields(Gate)]
    tested = [Gate(**{key: gate[key] for key in keys if key in gate}) for gate in gates]
    failed = [gate for gate in tested if not gate.ok]
    if failed:
        figures = "; ".join(gate.sentence for gate in failed)
        meaning = " ".join(map(in_words, failed))
        figures = f"{len(failed)} of {len(tested)} failed: {figures}"
        return [Verdict(CLAIM, "no", figures, meaning), *verdicts]
    if not tested:
        return [*verdicts]
    meaning = "Each was tested against the bound of its 95% interval that is harder to pass."
    return [*verdicts, Verdict(CLAIM, "yes", f"{len(tested)} of {len(tested)} passed", meaning)]


def in_words(gate: Gate) -> str:
    """`Asked for: loss at 16k minus loss at 1k at most 0.05; its 95% interval reaches up to …`."""
    quantity = parse_gate(f"{gate.name}{gate.op}{_threshold(gate)}").quantity
    asked = f"Asked for: {_named(quantity)} {AS_WORDS[gate.op]} {_threshold(gate)}"
    if gate.bound is None or gate.note:
        return f"{asked}; not tested: {gate.note}."
    if isinstance(quantity, Reach):
        return f"{asked}; it is {_threshold(gate, gate.bound)}."
    end = "up" if "<" in gate.op else "down"
    return f"{asked}; its 95% interval reaches {end} to {number(gate.bound, gate.digits)}."


def _threshold(gate: Gate, value: float | None = None) -> str:
    """The threshold or `value` as one writes it: a length of an effective length."""
    found = gate.threshold if value is None else value
    is_length = "effective_length." in gate.name
    return format_length(int(found)) if is_length else format(found, "g")


def _named(quantity: Side | Difference | Reach | Short) -> str:
    if isinstance(quantity, Difference):
        return f"{_named(quantity.first)} minus {_named(quantity.second)}"
    if isinstance(quantity, Short):
        return f"{quantity.key}, what changed within the native window,"
    owner = "" if quantity.subject == "checkpoint" else f"the {quantity.subject}’s "
    if isinstance(quantity, Reach):
        return f"{owner}effective length by {quantity.measure}"
    measure = "loss" if quantity.measure == "nll" else quantity.measure
    return f"{owner}{measure} at {format_length(quantity.length)}"
