"""Verdicts on retrieval: up to where is what was hidden found again?

A thing counts as found at a length when more than half of the samples are right by the lower bound
of the interval, there and at every shorter length.
"""

from __future__ import annotations

from giraffe_cli.evals.measures import measure_name
from giraffe_cli.report.numbers import Score, percent, proportion, samples
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdict import Answer, Verdict
from giraffe_cli.units import format_length

HALF = 0.5
_NAMES = {"passkey": "a passkey", "niah": "a needle"}
"""The two tasks that everybody knows; without them, the first retrieval task speaks."""


def looked_for(scored: Scored) -> list[str]:
    """The tasks whose retrieval gets a verdict."""
    found = scored.retrieval()
    known = [task for task in _NAMES if task in found]
    return known or found[:1] or ["passkey"]


def finds(scored: Scored, task: str) -> Verdict:
    """Is what `task` hides in the long text found again?

    Small models seldom say what they found: where even within the native window fewer than half
    are generated rightly, the ranking of the true answer is judged instead.
    """
    what = _NAMES.get(task, f"what {task} asks for")
    measure = judged(scored, task)
    tested = scored.scores(measure, "checkpoint")
    longest = max(tested, default=scored.target_length)
    claim = f"finds {what} at {format_length(longest)}"
    if measure != task:
        claim = f"tells {what} from wrong ones at {format_length(longest)}"
    if not tested:
        return Verdict(claim, "not measured", "", f"Finding {what} in long text was not evaluated.")
    answer, reason = _answer(scored, measure, longest)
    if scored.lookups:
        reason += (
            f" {percent(scored.lookups)} of the trained tokens were look-ups in other words, so "
            "this is a task that was practised."
        )
    return Verdict(
        claim, answer, _figures(scored, measure, longest), _told(scored, measure, longest) + reason
    )


def judged(scored: Scored, task: str) -> str:
    """The measure that decides: the answers generated, or their ranking where none of those is."""
    ranked = measure_name(task, "ranked")
    inside = _inside(scored, task)
    fails = inside is not None and inside["mean"] < HALF
    return ranked if fails and scored.scores(ranked, "checkpoint") else task


def _inside(scored: Scored, measure: str) -> Score | None:
    """The reference model's score at the longest length within the native window."""
    model = "base" if scored.scores(measure, "base") else "checkpoint"
    within = {n: s for n, s in scored.scores(measure, model).items() if n <= scored.native_length}
    return within[max(within)] if within else None


def _answer(scored: Scored, measure: str, longest: int) -> tuple[Answer, str]:
    """The answer, and why."""
    tested = scored.scores(measure, "checkpoint")
    found = found_up_to(tested)
    if found == longest:
        return "yes", " More than half, there and at every shorter length."
    inside = _inside(scored, measure)
    if inside is not None and inside["ci_high"] < HALF:
        return "not shown", (
            f" Even inside the native window fewer than half are right ({proportion(inside)}), so "
            "this task says little about length here."
        )
    reach = f" More than half are shown up to {format_length(found)}." if found else ""
    if tested[longest]["ci_high"] < HALF:
        return "no", f" Fewer than half at {format_length(longest)}.{reach}"
    return "not shown", f" Whether it is more than half the interval leaves open.{reach}"


def found_up_to(scores: dict[int, Score]) -> int | None:
    """The longest length at which, and at all shorter ones, the lower bound is above a half."""
    reached = None
    for length, score in scores.items():
        if score["ci_low"] <= HALF:
            break
        reached = length
    return reached


def _figures(scored: Scored, measure: str, longest: int) -> str:
    parts = [percent(scored.scores(measure, "checkpoint")[longest]["mean"])]
    base = scored.scores(measure, "base").get(longest)
    return ", ".join([*parts, *([f"base {percent(base['mean'])}"] if base else [])])


def _told(scored: Scored, measure: str, longest: int) -> str:
    """The shares with their intervals."""
    score = scored.scores(measure, "checkpoint")[longest]
    base = scored.scores(measure, "base").get(longest)
    shares = f"{scored.tested} {proportion(score)}" if base else proportion(score)
    shares += f", base {proportion(base)}" if base else ""
    how = "Answers found in the text generated"
    if "." in measure:
        chance = percent(scored.measures[measure]["chance"])
        how = f"True answers ranked before nine wrong ones (by chance {chance})"
    return f"{how} at {format_length(longest)}: {shares}; 95% intervals, n = {samples(score)}."
