"""What the numbers mean, in sentences; decided by interval bounds, never by means.

    extended at 16k minus extended at 1k: [−0.06, −0.04]  → uses context up to 16k: yes
                                          [−0.02, +0.03]  → not shown

`not shown` is an answer: the data do not settle the question either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from giraffe_cli.report.scores import (
    Score,
    by_length,
    interval,
    paired,
    percent,
    perplexity_change,
    proportion,
    with_half_width,
)
from giraffe_cli.units import format_length

Answer = Literal["yes", "no", "not shown", "not measured"]

COLLAPSE = 1.0
"""Nats that the base must lose beyond its window, by the lower bound, to be called collapsed."""
SHORT_TOLERANCE = 0.05
"""Nats that short context may cost, by the upper bound."""


@dataclass(frozen=True)
class Verdict:
    """One question a reader has, and what was measured."""

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
        """`uses context up to 16k: yes, −0.05 ± 0.01 nats compared with 1k`."""
        figures = f", {self.figures}" if self.figures else ""
        return f"{self.claim}: {self.answer}{figures}"


def verdicts(report: Mapping[str, Any]) -> list[Verdict]:
    """The answers in the order in which a reader asks."""
    return [
        uses_context(report),
        short_context_kept(report),
        *([beyond_domain(report)] if report.get("control") else []),
        base_beyond_window(report),
        finds_passkey(report),
        loads_anywhere(report),
    ]


def _lengths(report: Mapping[str, Any]) -> tuple[int, int]:
    """(native, longest scored): what `long` and `short` stand for in the verdicts."""
    scored = by_length(report, "nll", "extended")
    native = int(report["native_length"])
    return native, max(scored, default=int(report["target_length"]))


def _measured(score: Score, short: str) -> str:
    return f"{with_half_width(score, sign=True)} nats compared with {short}"


def _bounds(score: Score) -> str:
    return f"(95% interval {interval(score, sign=True)} nats, n = {score['n']})"


def uses_context(report: Mapping[str, Any]) -> Verdict:
    """Are the same tokens predicted better with the long context before them?"""
    native, longest = _lengths(report)
    short, long = format_length(native), format_length(longest)
    claim = f"uses context up to {long}"
    nested = ("length_minus_native", "checkpoint")
    score = paired(report, *nested, str(longest))
    if score is None:
        return Verdict(claim, "not measured", "", "The loss by context length was not evaluated.")
    figures, bounds = _measured(score, short), _bounds(score)
    if score["ci_high"] < 0:
        return Verdict(
            claim,
            "yes",
            figures,
            f"The extended model predicts the same words better with {long} tokens of text before "
            f"them than with {short}: {perplexity_change(score['mean'])} {bounds}.",
        )
    if score["ci_low"] > 0:
        return Verdict(
            claim,
            "no",
            figures,
            f"With {long} tokens before them the same words are predicted worse than with {short}: "
            f"the long context does harm {bounds}.",
        )
    shown = [
        length
        for length in by_length(report, "nll", "extended")
        if length > native
        and (gain := paired(report, *nested, str(length)))
        and gain["ci_high"] < 0
    ]
    shorter = f" A gain is shown up to {format_length(max(shown))}." if shown else ""
    return Verdict(
        claim,
        "not shown",
        figures,
        f"The interval includes zero {bounds}: {long} tokens neither help nor hurt measurably "
        f"compared with {short}.{shorter}",
    )


def short_context_kept(report: Mapping[str, Any]) -> Verdict:
    """What did the extension cost inside the native window?"""
    native, _ = _lengths(report)
    short = format_length(native)
    claim = "short context kept"
    score = report.get("short_context", {}).get("delta_nll")
    score = score or paired(report, "checkpoint_minus_base", str(native))
    if not score:
        return Verdict(claim, "not measured", "", f"The loss at {short} was not evaluated.")
    figures = f"{with_half_width(score, sign=True)} nats against the base at {short}"
    bounds = _bounds(score)
    domain = "" if report.get("control") else _domain(score)
    if score["ci_high"] <= SHORT_TOLERANCE:
        effect = (
            f"Inside the native window the extended model is better than the base {bounds}."
            if score["ci_high"] < 0
            else f"Inside the native window extending cost at most {SHORT_TOLERANCE} nats {bounds}."
        )
        return Verdict(claim, "yes", figures, f"{effect}{domain}")
    if score["ci_low"] > SHORT_TOLERANCE:
        return Verdict(
            claim, "no", figures, f"Text of up to {short} tokens is predicted worse now {bounds}."
        )
    return Verdict(
        claim,
        "not shown",
        figures,
        f"The interval reaches past the {SHORT_TOLERANCE} nats that short context may cost "
        f"{bounds}.{domain}",
    )


def _domain(score: Score) -> str:
    """The caution that a gain inside the native window cannot come from length."""
    if score["mean"] >= 0:
        return ""
    return (
        f" {'A' if score['ci_high'] < 0 else 'If real, a'} gain at this length is the training "
        "text’s domain, not length: part of the gain over the base at longer contexts may be the "
        "domain as well."
    )


def beyond_domain(report: Mapping[str, Any]) -> Verdict:
    """Of what was gained over the base inside its window, how much is length, how much the text?

    With the control C and the same targets everywhere: extended(long) - base(short) is
    [C(short) - base(short)], the domain, plus [extended(long) - C(short)], the length.
    """
    native, longest = _lengths(report)
    short, long = format_length(native), format_length(longest)
    claim = f"gains from {long} of context, beyond the text’s domain"
    gain, domain, length, here = (
        paired(report, *path)
        for path in (
            ("checkpoint_minus_native_base", str(longest)),
            ("control_minus_base", str(native)),
            ("checkpoint_minus_native_control", str(longest)),
            ("checkpoint_minus_control", str(native)),
        )
    )
    if not (gain and domain and length and here):
        return Verdict(claim, "not measured", "", f"The control was not scored at {short}.")
    figures = f"{with_half_width(length, sign=True)} nats compared with the control at {short}"
    meaning = (
        f"The extended model at {long} stands at {with_half_width(gain, sign=True)} nats against "
        f"the base at {short}: {with_half_width(domain, sign=True)} of them are the text’s domain, "
        f"which the control learnt from the same text without getting longer, and "
        f"{with_half_width(length, sign=True)} are length {_bounds(length)}. At {short} itself "
        f"extended and control differ by {with_half_width(here, sign=True)} nats: what the "
        f"extension changed inside the native window."
    )
    answer: Answer = "not shown"
    if length["ci_high"] < 0:
        answer = "yes"
    elif length["ci_low"] > 0:
        answer = "no"
    return Verdict(claim, answer, figures, meaning)


def base_beyond_window(report: Mapping[str, Any]) -> Verdict:
    """How does the unextended model fare at the long end?"""
    native, longest = _lengths(report)
    short, long = format_length(native), format_length(longest)
    score = paired(report, "length_minus_native", "base", str(longest))
    collapses = "base collapses beyond its window"
    if score is None:
        return Verdict(collapses, "not measured", "", "The base was not evaluated.", True)
    figures = f"{with_half_width(score, sign=True)} nats at {long} compared with {short}"
    bounds = _bounds(score)
    change = perplexity_change(score["mean"])
    if score["ci_low"] > COLLAPSE:
        text = f"Without the extension, {long} tokens of context mean {change} {bounds}."
        return Verdict(collapses, "yes", figures, text, True)
    worse = "base gets worse beyond its window"
    if score["ci_low"] > 0:
        text = f"Without the extension, {long} tokens of context mean {change} {bounds}."
        return Verdict(worse, "yes", figures, text, True)
    if score["ci_high"] < 0:
        text = f"The base already gains from {long} tokens of context {bounds}."
        return Verdict(worse, "no", figures, text, True)
    return Verdict(worse, "not shown", figures, f"The interval includes zero {bounds}.", True)


def finds_passkey(report: Mapping[str, Any]) -> Verdict:
    """Is a number hidden in the long text found again?"""
    native = int(report["native_length"])
    extended = by_length(report, "passkey", "extended")
    base = by_length(report, "passkey", "base")
    longest = max(extended, default=int(report["target_length"]))
    long, short = format_length(longest), format_length(native)
    claim = f"finds a passkey at {long}"
    if not extended or longest not in base:
        return Verdict(claim, "not measured", "", "Look-up of a hidden number was not evaluated.")
    after, before = extended[longest], base[longest]
    figures = f"{percent(after['mean'])} found, base {percent(before['mean'])}"
    counts = (
        f"Hidden numbers found at {long}: extended {proportion(after)}, base {proportion(before)}; "
        f"95% intervals, n = {after['n']}."
    )
    inside = base.get(native)
    if inside and inside["ci_high"] < 0.5:
        text = (
            f"{counts} The base finds fewer than half even inside its own window "
            f"({proportion(inside)} at {short}), so this task says little about length here."
        )
        return Verdict(claim, "not shown", figures, text)
    if after["ci_low"] > before["ci_high"]:
        return Verdict(claim, "yes", figures, f"{counts} The intervals do not overlap.")
    if after["ci_high"] < before["ci_low"]:
        return Verdict(claim, "no", figures, f"{counts} The extension made it worse.")
    return Verdict(claim, "not shown", figures, f"{counts} The intervals overlap.")


def loads_anywhere(report: Mapping[str, Any]) -> Verdict:
    """Did the reload in a process without giraffe agree with what was trained?"""
    claim = "loads in stock transformers"
    proof = report.get("verify") or {}
    checks = proof.get("checks", {})
    if not checks:
        return Verdict(claim, "not measured", "", "The directory was not verified.")
    passed = sum(bool(check["ok"]) for check in checks.values())
    return Verdict(
        claim,
        "yes" if proof["ok"] else "no",
        f"{passed} of {len(checks)} checks passed",
        "The written directory was reloaded from disk by a process that knows nothing of giraffe; "
        "weights, RoPE table and logits were compared with what was trained."
        if proof["ok"]
        else "The directory differs from what was trained; see the checks below.",
    )
