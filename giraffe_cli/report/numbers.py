"""Scores as people read them: signed numbers, half-widths, percentages, points, p-values.

    {"mean": -0.05, "ci_low": -0.06, "ci_high": -0.04, "n": 32}  →  `−0.05 ± 0.01`

A score that was not measured is None and is shown as `–`, never as a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from giraffe_cli.units import counted

Score = Mapping[str, Any]
"""`mean`, `ci_low`, `ci_high` (95 %) and `n`."""

ABSENT = "–"


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """`−0.05` with a typographic minus; `sign` shows a plus too; never a negative zero."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{digits}f}".replace("-", "−")


def half_width(score: Score) -> float:
    """Half of the 95 % interval."""
    return float(score["ci_high"] - score["ci_low"]) / 2


def digits_for(score: Score, sign: bool = False) -> int:
    """Decimals that show the interval: two, or up to four where it is narrower than 0.01; of a
    difference (`sign`) three where it is narrower than 0.05."""
    width = half_width(score)
    if width <= 0:
        return 2
    fewest = 3 if sign and width < 0.05 else 2
    return min(4, max(fewest, math.ceil(-math.log10(width) - 1e-9)))


def without_interval(score: Score) -> bool:
    """Whether it comes from one document, which has no interval: nothing follows from it."""
    return score.get("clusters", 2) < 2 and bool(score["ci_low"] == score["ci_high"])


def with_half_width(score: Score | None, sign: bool = False, alone: bool = True) -> str:
    """`2.95 ± 0.03`; `2.95 (2.83 to 2.98)` where the interval is not symmetric as far as digits are
    shown, or `2.95` where it does not stand `alone` but beside the interval; `2.95` where there is
    none, or `–`."""
    if score is None:
        return ABSENT
    digits = digits_for(score, sign)
    mean, half = number(score["mean"], digits, sign), half_width(score)
    if without_interval(score):
        return mean
    if abs(score["ci_low"] + half - score["mean"]) > 10**-digits:
        return f"{mean} ({interval(score, sign)})" if alone else mean
    return f"{mean} ± {number(half, digits)}"


def interval(score: Score, sign: bool = False) -> str:
    """`−0.060 to −0.040`: the 95 % interval itself, which need not be symmetric; `no interval` of
    one document."""
    if without_interval(score):
        return "no interval"
    digits = digits_for(score, sign)
    return f"{number(score['ci_low'], digits, sign)} to {number(score['ci_high'], digits, sign)}"


def samples(score: Score) -> str:
    """`20`; `8 from 2 texts` where several samples share one, which is what the interval counts."""
    n, texts = score["n"], score.get("clusters", score["n"])
    return f"{n} from {counted(texts, 'text')}" if texts < n else str(n)


def percent(value: float) -> str:
    """0.425 → `42%`; 0.997 → `99.7%`, for what is not all and not none may not be shown so."""
    return f"{whole_percent(value)}%"


def whole_percent(value: float, sign: str = "") -> str:
    """`42`; of what is not quite all or none `99.7`, then `>99.9`, and `<0.1`."""
    for digits in (0, 1):
        shown = f"{100 * value:{sign}.{digits}f}"
        if abs(float(shown)) not in (0, 100) or abs(value) in (0, 1):
            return shown
    return f"{'-' if value < 0 else ''}{'>99.9' if abs(value) > 0.5 else '<0.1'}"


def proportion(score: Score | None, unit: str = "%") -> str:
    """`95% (76 to 99%)`, or `–`; `unit` is repeated after the interval."""
    if score is None:
        return ABSENT
    low, high = (whole_percent(score[key]) for key in ("ci_low", "ci_high"))
    return f"{percent(score['mean'])} ({low} to {high}{unit})"


def perplexity_change(nats: float) -> str:
    """−0.05 → `5% lower perplexity`; beyond a doubling as a factor: 1.5 → `4.5 times the…`."""
    ratio = math.exp(nats)
    if ratio >= 2:
        return f"{ratio:.1f} times the perplexity"
    change = 100 * abs(ratio - 1)
    shown = f"{change:.0f}" if change >= 1 else f"{change:.1f}"
    return f"{shown}% {'lower' if ratio < 1 else 'higher'} perplexity"


def share_interval(score: Score) -> str:
    """`76 to 99%`."""
    return f"{whole_percent(score['ci_low'])} to {whole_percent(score['ci_high'])}%"


def points(score: Score) -> str:
    """A difference of shares: 0.4 → `+40`."""
    return number(100 * score["mean"], 0, sign=True)


def points_interval(score: Score) -> str:
    """`+12 to +65`, in points."""
    low, high = (number(100 * score[key], 0, sign=True) for key in ("ci_low", "ci_high"))
    return f"{low} to {high}"


def p_value(score: Score) -> str:
    """`p 0.013`, `p < 0.001`; empty where none was computed; where no p of so few texts can be
    small, `p 0.50, the least that 2 texts can give`."""
    value = score.get("p_value")
    if value is None:
        return ""
    if value < 0.001:
        return "p < 0.001"
    shown, texts = f"p {value:.3f}" if value < 0.1 else f"p {value:.2f}", score.get("clusters", 0)
    least = 2.0 ** (1 - texts)  # signs of all differences alike
    if texts > 1 and value <= least * 1.001 and least > 0.05:
        return f"{shown}, the least that {counted(texts, 'text')} can give"
    return shown


def exact_percent(value: float) -> str:
    """0.9913 → `99.13%`; what is not all never reads as 100%."""
    text = f"{value:.2%}"
    return "99.99%" if text == "100.00%" and value < 1 else text.replace("100.00%", "100%")
