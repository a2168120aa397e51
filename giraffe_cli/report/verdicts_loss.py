"""Verdicts on the loss: is far text used, was short context kept, does the base collapse?"""

from __future__ import annotations

from giraffe_cli.gates import MAX_LOSS_RISE
from giraffe_cli.report.numbers import (
    Score,
    number,
    perplexity_change,
    with_half_width,
    without_interval,
)
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdict import Answer, Verdict, below_zero, bounds
from giraffe_cli.units import format_length

COLLAPSE = 1.0
"""Nats that the base must lose beyond its window, by the lower bound, to be called collapsed."""
ALIKE = 0.05
"""How much more or fewer tokens a control may have read without a word."""
ALONE = "One document has no interval: nothing follows from it."


def _reach(scored: Scored) -> tuple[int, int]:
    """(native, longest scored): what `short` and `long` stand for in the verdicts."""
    tested = scored.scores("nll", "checkpoint")
    return scored.native_length, max(tested, default=scored.target_length)


def _nats(score: Score) -> str:
    return f"{with_half_width(score, sign=True)} nats"


def uses_context(scored: Scored) -> Verdict:
    """Are the same tokens predicted better with the long context before them?"""
    native, longest = _reach(scored)
    short, long = format_length(native), format_length(longest)
    claim = f"uses context up to {long}"
    gains = scored.differences("nll", "length_minus_native", "checkpoint")
    score = gains.get(longest)
    if score is None or longest <= native:
        reason = (
            f"The loss was scored at no length beyond the native window of {short}."
            if scored.scores("nll", "checkpoint") and longest <= native
            else f"The loss was not evaluated at {short} and beyond."
        )
        return Verdict(claim, "not measured", "", reason)
    answer, figures = below_zero(score), f"{_nats(score)} over {short}"
    subject = scored.subject[0].upper() + scored.subject[1:]
    if without_interval(score):
        meaning = ALONE
    elif answer == "yes":
        meaning = (
            f"{subject} predicts the same words better with {long} tokens of text "
            f"before them than with {short}: {perplexity_change(score['mean'])} {bounds(score)}."
        )
    elif answer == "no":
        meaning = (
            f"With {long} tokens before them the same words are predicted worse than with {short}: "
            f"the long context does harm {bounds(score)}."
        )
    else:
        shown = [n for n, gain in gains.items() if n > native and gain["ci_high"] < 0]
        shorter = f" A gain is shown up to {format_length(max(shown))}." if shown else ""
        farthest = max(-score["ci_low"], score["ci_high"])
        settled = (
            f"if {long} tokens help or hurt compared with {short}, then by less than "
            f"{number(farthest, 3)} nats"
            if farthest <= MAX_LOSS_RISE
            else f"whether {long} tokens help or hurt compared with {short} is not settled"
        )
        meaning = f"The interval includes zero {bounds(score)}: {settled}.{shorter}"
    return Verdict(claim, answer, figures, meaning)


def far_text_used(scored: Scored) -> Verdict:
    """Does the far text help more than the same words in another order?"""
    native, longest = _reach(scored)
    short, long = format_length(native), format_length(longest)
    claim = "far text is used, not only tolerated"
    score = scored.paired("nll", "real_minus_shuffled", "checkpoint", at=longest)
    if score is None:
        return Verdict(claim, "not measured", "", "No prompt with shuffled far text was read.")
    figures = f"{_nats(score)}, real − shuffled at {long}"
    if without_interval(score):
        return Verdict(claim, "not shown", figures, ALONE)
    meaning = {
        "yes": f"What lies further back than {short} tokens helps more in its true order than "
        f"with its words shuffled {bounds(score)}: it is read, and not only put up with.",
        "no": f"The words beyond {short} tokens serve better shuffled than in order "
        f"{bounds(score)}: the far text misleads.",
    }.get(
        below_zero(score),
        f"In true order or shuffled, what lies further back than {short} tokens makes no "
        f"difference that the interval shows {bounds(score)}: a long context that does no harm "
        f"need not be a context that is read.",
    )
    return Verdict(claim, below_zero(score), figures, meaning)


def short_context_kept(scored: Scored, other: bool = False) -> Verdict:
    """What did the extension cost inside the native window, on held-out text or on `other`?"""
    short = format_length(scored.native_length)
    claim = "short context kept, on text of another domain" if other else "short context kept"
    score = scored.results.get("short_context", {}).get("delta_nll_other" if other else "delta_nll")
    if not score:
        reason = f"The loss within {short} was not compared with a base."
        return Verdict(claim, "not measured", "", reason)
    figures = f"{_nats(score)} against the base within {short}"
    if without_interval(score):
        return Verdict(claim, "not shown", figures, ALONE)
    answer: Answer = "not shown"
    effect = f"The interval reaches past the {MAX_LOSS_RISE} nats that short context may cost"
    if score["ci_low"] > MAX_LOSS_RISE:
        answer, effect = "no", f"Text of up to {short} tokens is predicted worse now"
    elif score["ci_high"] < 0:
        answer = "yes"
        effect = f"Inside the native window {scored.subject} is better than the base"
    elif score["ci_high"] <= MAX_LOSS_RISE:
        answer = "yes"
        effect = f"Inside the native window extending cost at most {MAX_LOSS_RISE} nats"
    told = answer != "no" and not other and "control" not in scored.models
    caution = _not_of_length(score, scored.trained) if told else ""
    return Verdict(claim, answer, figures, f"{effect} {bounds(score)}.{caution}")


def _not_of_length(score: Score, trained: bool) -> str:
    """The caution that a gain inside the native window cannot come from length."""
    if score["mean"] >= 0:
        return ""
    of, short = ("the training text’s domain", "the domain") if trained else ("the table’s",) * 2
    return (
        f" {'A' if score['ci_high'] < 0 else 'If real, a'} gain at this length is {of}, not "
        f"length: part of the gain over the base at longer contexts may be {short} as well."
    )


def beyond_domain(scored: Scored) -> Verdict:
    """Of what was gained over the base inside its window, how much is length, how much the text?

    With the control C and the same targets everywhere: extended(long) - base(short) is
    [C(short) - base(short)], the domain, plus [extended(long) - C(short)], the length.
    """
    native, longest = _reach(scored)
    short, long = format_length(native), format_length(longest)
    claim = f"gains from {long} of context, beyond the text’s domain"
    gain, domain, length, here = (
        scored.paired("nll", contrast, at=at)
        for contrast, at in (
            ("checkpoint_minus_native_base", longest),
            ("control_minus_base", native),
            ("checkpoint_minus_native_control", longest),
            ("checkpoint_minus_control", native),
        )
    )
    if not (gain and domain and length and here):
        return Verdict(claim, "not measured", "", f"The control was not scored at {short}.")
    meaning = (
        f"At {long} {scored.subject} stands at {_nats(gain)} against "
        f"the base at {short}: {_nats(domain)} of them are the text’s domain, "
        f"which the control learnt from the same text without getting longer, and "
        f"{_nats(length)} are length {bounds(length)}. At {short} itself "
        f"{scored.tested} and control differ by {_nats(here)}: what the "
        f"extension changed inside the native window.{_unlike(scored)}"
    )
    figures = f"{_nats(length)} compared with the control at {short}"
    return Verdict(claim, below_zero(length), figures, meaning)


def _unlike(scored: Scored) -> str:
    """Of a control that was not trained on as much, as where the run was ended before it."""
    share = scored.control_share
    if abs(share - 1) <= ALIKE:
        return ""
    return (
        f" The control was trained on {share:.3g} times as many tokens, so what is told as domain "
        f"may be too {'much' if share > 1 else 'little'}."
    )


def base_beyond_window(scored: Scored) -> Verdict:
    """How does the unextended model fare at the long end?"""
    native, longest = _reach(scored)
    short, long = format_length(native), format_length(longest)
    score = scored.paired("nll", "length_minus_native", "base", at=longest)
    collapses = "base collapses beyond its window"
    if score is None or longest <= native:
        return Verdict(
            collapses, "not measured", "", "The base was not scored beyond its window.", True
        )
    figures = f"{_nats(score)} at {long} compared with {short}"
    if without_interval(score):
        return Verdict("base gets worse beyond its window", "not shown", figures, ALONE, True)
    change = f"Without the extension, {long} tokens of context mean "
    change += f"{perplexity_change(score['mean'])} {bounds(score)}."
    if score["ci_low"] > COLLAPSE:
        return Verdict(collapses, "yes", figures, change, True)
    worse = "base gets worse beyond its window"
    gains = below_zero(score)
    answer: Answer = {"yes": "no", "no": "yes"}.get(gains, "not shown")  # type: ignore[assignment]
    text = {
        "no": f"The base already gains from {long} tokens of context {bounds(score)}.",
        "yes": change,
        "not shown": f"The interval includes zero {bounds(score)}.",
    }[answer]
    return Verdict(worse, answer, figures, text, True)
