"""One question a reader has, and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from giraffe_cli.report.numbers import Score, interval, p_value, samples, without_interval

Answer = Literal["yes", "no", "not shown", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """A claim, and what was measured about it."""

    claim: str
    answer: Answer
    figures: str
    """Numbers with intervals; empty when nothing was measured."""
    meaning: str
    """The same in plain language."""
    about_base: bool = False
    """True: a fact about the starting point, neither merit nor fault of the extension."""

    @property
    def sentence(self) -> str:
        """`uses context up to 16k: yes, −0.043 ± 0.011 nats over 8k`."""
        figures = f", {self.figures}" if self.figures else ""
        return f"{self.claim}: {self.answer}{figures}"


def bounds(score: Score) -> str:
    """`(95% interval −0.054 to −0.032 nats, n = 32, p 0.003)`."""
    if without_interval(score):
        return "(one document has no interval)"
    p = f", {p_value(score)}" if p_value(score) else ""
    return f"(95% interval {interval(score, sign=True)} nats, n = {samples(score)}{p})"


def below_zero(score: Score) -> Answer:
    """Yes when the whole interval of a loss lies below zero, no when it lies above."""
    if without_interval(score):
        return "not shown"
    if score["ci_high"] < 0:
        return "yes"
    return "no" if score["ci_low"] > 0 else "not shown"
