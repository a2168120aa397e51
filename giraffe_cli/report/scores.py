"""Scores as people read them: rows by length, signed numbers, half-widths, percentages.

    {"mean": -0.05, "ci_low": -0.06, "ci_high": -0.04, "n": 32}  →  `−0.05 ± 0.01`

A score that was not measured is None and is shown as `–`, never as a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Score = Mapping[str, Any]
"""`mean`, `ci_low`, `ci_high` (95 %) and `n`."""

ABSENT = "–"


@dataclass(frozen=True)
class LengthRow:
    """Everything measured at one context length."""

    length: int
    """Tokens."""
    beyond_native: bool
    base_nll: Score | None
    extended_nll: Score | None
    difference: Score | None
    """Extended minus base on the same targets, nats per token."""
    base_passkey: Score | None
    extended_passkey: Score | None
    control_nll: Score | None = None
    """Of the control run, where there was one; within the native window only."""
    from_control: Score | None = None
    """Extended minus control on the same targets, nats per token."""


def by_length(report: Mapping[str, Any], task: str, model: str) -> dict[int, Score]:
    """`report[task][model]` with integer lengths, shortest first; empty when it was not run."""
    scores = report.get(task, {}).get(model, {})
    return {int(length): scores[length] for length in sorted(scores, key=int) if scores[length]}


def paired(report: Mapping[str, Any], *path: str) -> Score | None:
    """The paired NLL difference at `path`, such as `("checkpoint_minus_base", "1024")`."""
    value: Any = report.get("differences", {}).get("nll", {})
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value or None


def length_rows(report: Mapping[str, Any]) -> list[LengthRow]:
    """One row for each length that any task was scored at, shortest first."""
    columns = {
        f"{model}_{task}": by_length(report, task, model)
        for task in ("nll", "passkey")
        for model in ("base", "extended")
    }
    columns["control_nll"] = by_length(report, "nll", "control")
    return [
        LengthRow(
            length=length,
            beyond_native=length > report["native_length"],
            difference=paired(report, "checkpoint_minus_base", str(length)),
            from_control=paired(report, "checkpoint_minus_control", str(length)),
            **{name: scores.get(length) for name, scores in columns.items()},
        )
        for length in sorted(set().union(*columns.values()))
    ]


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """`−0.05` with a typographic minus; `sign` shows a plus too; never a negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}".replace("-", "−")


def half_width(score: Score) -> float:
    """Half of the 95 % interval."""
    return float(score["ci_high"] - score["ci_low"]) / 2


def digits_for(score: Score) -> int:
    """Decimals that show the interval: two, or up to four where it is narrower than 0.01."""
    width = half_width(score)
    return 2 if width <= 0 else min(4, max(2, math.ceil(-math.log10(width) - 1e-9)))


def with_half_width(score: Score | None, sign: bool = False) -> str:
    """`2.95 ± 0.03`, or `–`."""
    if score is None:
        return ABSENT
    digits = digits_for(score)
    return f"{number(score['mean'], digits, sign)} ± {number(half_width(score), digits)}"


def interval(score: Score, sign: bool = False) -> str:
    """`−0.06 to −0.04`: the 95 % interval itself, which need not be symmetric."""
    digits = digits_for(score)
    return f"{number(score['ci_low'], digits, sign)} to {number(score['ci_high'], digits, sign)}"


def percent(value: float) -> str:
    """0.425 → `42%`."""
    return f"{100 * value:.0f}%"


def proportion(score: Score | None, unit: str = "%") -> str:
    """`95% (76 to 99%)`, or `–`; `unit` is repeated after the interval."""
    if score is None:
        return ABSENT
    low, high = 100 * score["ci_low"], 100 * score["ci_high"]
    return f"{percent(score['mean'])} ({low:.0f} to {high:.0f}{unit})"


def perplexity_change(nats: float) -> str:
    """−0.05 → `5% lower perplexity`; beyond a doubling as a factor: 1.5 → `4.5 times the…`."""
    ratio = math.exp(nats)
    if ratio >= 2:
        return f"{ratio:.1f} times the perplexity"
    change = 100 * abs(ratio - 1)
    shown = f"{change:.0f}" if change >= 1 else f"{change:.1f}"
    return f"{shown}% {'lower' if ratio < 1 else 'higher'} perplexity"
