"""Gates of an evaluation: names checked before a model is opened, claims tested on the samples.

A difference is taken sample by sample from the scoreboards, so any two lengths and models of one
measure can be held against each other; two means are never subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.evals.base import AbstractTask, Measure, measure_name
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.scoreboard import Scoreboard, difference
from giraffe_cli.evals.short_context import AT_NATIVE_EXACTLY, GIVEN_BY, KEYS
from giraffe_cli.evals.subject import Subject
from giraffe_cli.gates import (
    OPERATORS,
    Claim,
    Difference,
    Gate,
    Reach,
    Short,
    Side,
    judged,
    parse_gate,
)
from giraffe_cli.units import format_length


def check_gates(
    config: EvalConfig,
    batches: Sequence[Batch],
    subjects: Sequence[Subject],
    native_length: int,
) -> None:
    """Gates and threshold bear on models, measures and lengths that are about to be evaluated.

    Raises:
        InvalidInput: one does not; with near misses and what is evaluated.
    """
    _check_threshold(config.threshold, batches)
    coming = Coming(batches, {subject.name: subject for subject in subjects}, native_length)
    for claim in map(parse_gate, config.gates):
        quantity = claim.quantity
        for side in sides(quantity):
            _check_side(side, claim, coming)
            if isinstance(side, Reach):
                _check_reach(side, claim, coming, config.threshold)
        if isinstance(quantity, Short):
            _check_short(quantity.key, claim, coming)
        if isinstance(quantity, Difference):
            _check_difference(quantity, claim, {batch.name: batch.task for batch in batches})


class Coming(NamedTuple):
    """What is about to be evaluated."""

    batches: Sequence[Batch]
    subjects: Mapping[str, Subject]
    native_length: int

    def measured(self) -> dict[str, tuple[Batch, str]]:
        """Measure → the batch that gives it, and what its task calls it."""
        return {
            measure_name(batch.name, key): (batch, key)
            for batch in self.batches
            for key in batch.task.measures
        }

    def lengths(self, measure: str, subject: str) -> list[int]:
        """The lengths at which `subject` gets a score by `measure`, rising."""
        if measure not in self.measured() or subject not in self.subjects:
            return []
        batch, key = self.measured()[measure]
        if batch.task.measures[key].against_base and (
            subject == "base" or "base" not in self.subjects
        ):
            return []
        takes = self.subjects[subject].takes
        found = (e for e in batch.examples if takes(e) and not e.for_reference)
        return sorted({e.length for e in found if key in batch.task.bears_on(e)})

    def within_native(self, measure: str, subject: str) -> list[int]:
        """Those of `lengths` within the native window."""
        return [n for n in self.lengths(measure, subject) if n <= self.native_length]


def sides(quantity: Side | Difference | Reach | Short) -> tuple[Side | Reach, ...]:
    """The scores that a quantity is made of."""
    if isinstance(quantity, Difference):
        return quantity.first, quantity.second
    return () if isinstance(quantity, Short) else (quantity,)


def settle(
    gates: Iterable[str], boards: Mapping[str, Scoreboard], short_context: Mapping[str, Any]
) -> list[Gate]:
    """Every gate tested; what was not scored after all fails, with a note of why."""
    return [_settle(claim, boards, short_context) for claim in map(parse_gate, gates)]


def _settle(
    claim: Claim, boards: Mapping[str, Scoreboard], short_context: Mapping[str, Any]
) -> Gate:
    quantity = claim.quantity
    if isinstance(quantity, Reach):
        board = boards.get(quantity.measure)
        reached = board.effective_length(quantity.subject) if board else None
        if reached is None:
            return _untested(claim, "no effective length is shown")
        ok = OPERATORS[claim.op](reached, claim.threshold)
        return Gate(claim.name, claim.op, claim.threshold, float(reached), ok)
    score = _score(quantity, boards, short_context)
    if score is None:
        return _untested(claim, _why(quantity, boards, short_context))
    return judged(claim.name, score, claim.op, claim.threshold)


def _score(
    quantity: Side | Difference | Short,
    boards: Mapping[str, Scoreboard],
    short_context: Mapping[str, Any],
) -> Mapping[str, Any] | None:
    """The score or paired difference that is tested; None when it was not scored."""
    if isinstance(quantity, Short):
        return short_context.get(quantity.key)
    found = [
        boards[side.measure].groups[side.subject].get(side.length, [])
        if side.measure in boards
        else []
        for side in sides(quantity)
        if isinstance(side, Side)
    ]
    if not all(found):
        return None
    if isinstance(quantity, Side):
        return boards[quantity.measure].score(found[0])
    board = boards[quantity.first.measure]
    return difference(found[0], found[1], board.measure, board.seed)


def _untested(claim: Claim, note: str) -> Gate:
    return Gate(claim.name, claim.op, claim.threshold, None, False, note)


def _why(
    quantity: Side | Difference | Short,
    boards: Mapping[str, Scoreboard],
    short_context: Mapping[str, Any],
) -> str:
    """What is missing, and what there is."""
    if isinstance(quantity, Short):
        known = ", ".join(short_context) or "nothing"
        return f"short context has no {quantity.key}, it has {known}"
    for side in sides(quantity):
        lengths = boards[side.measure].groups[side.subject] if side.measure in boards else {}
        if isinstance(side, Side) and not lengths.get(side.length):
            scored = ", ".join(map(format_length, sorted(lengths))) or "no length"
            return f"{side} was not scored; {side.measure} was at {scored}"
    return "the two share no samples"


def _check_threshold(threshold: float | None, batches: Sequence[Batch]) -> None:
    """A given threshold of the effective length bears on some measure.

    Raises:
        InvalidInput: only losses are evaluated, whose effective length asks for no threshold.
    """
    if threshold is not None and not any(m.has_threshold for m in _measures(batches)):
        raise InvalidInput(
            f"threshold {threshold:g} has no effect: {', '.join(b.name for b in batches)} "
            "measure no share of right answers",
            "leave it out, or add a retrieval task such as passkey",
        )


def _check_side(side: Side | Reach, claim: Claim, coming: Coming) -> None:
    """The model is evaluated, by that measure, at that length.

    Raises:
        InvalidInput: it is not.
    """
    if side.subject not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: no model `{side.subject}` is evaluated",
            near_misses(side.subject, coming.subjects),
        )
    measured = coming.measured()
    if side.measure not in measured:
        raise InvalidInput(
            f"gate `{claim.text}`: no measure `{side.measure}` is evaluated",
            near_misses(side.measure, measured),
        )
    batch, key = measured[side.measure]
    if batch.task.measures[key].against_base and "base" not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: `{side.measure}` holds a model against the base, and none is "
            "given",
            "pass --base",
        )
    if isinstance(side, Side) and side.length not in coming.lengths(side.measure, side.subject):
        where = f"`{side.subject}` is not scored on `{side.measure}` at "
        _refuse_length(claim, where + format_length(side.length), side, coming)


def _check_reach(side: Reach, claim: Claim, coming: Coming, threshold: float | None) -> None:
    """There is something to hold the lengths beyond the native window against.

    Raises:
        InvalidInput: there is not, so that no effective length can be shown.
    """
    batch, key = coming.measured()[side.measure]
    measure, native = batch.task.measures[key], format_length(coming.native_length)
    if not measure.reaches:
        raise InvalidInput(
            f"gate `{claim.text}`: `{side.measure}` tells nothing of the model that is tested",
            f"known: {', '.join(_reaching(coming))}",
        )
    if not measure.has_threshold:
        if coming.native_length not in coming.lengths(side.measure, side.subject):
            what = f"`{side.measure}` is held against the native window of {native}, at which "
            _refuse_length(claim, f"{what}`{side.subject}` is not scored", side, coming)
    elif threshold is None:
        reference = "base" if coming.lengths(side.measure, "base") else "checkpoint"
        if not coming.within_native(side.measure, reference):
            what = f"`{side.measure}` is held against the {reference}'s score within the native "
            _refuse_length(claim, f"{what}window of {native}, which it has not", side, coming)


def _reaching(coming: Coming) -> list[str]:
    return [n for n, (batch, key) in coming.measured().items() if batch.task.measures[key].reaches]


def _refuse_length(claim: Claim, fact: str, side: Side | Reach, coming: Coming) -> NoReturn:
    """Raises InvalidInput: `fact`, and what is scored instead."""
    lengths = coming.lengths(side.measure, side.subject)
    scored = ", ".join(map(format_length, lengths)) or "no length"
    raise InvalidInput(
        f"gate `{claim.text}`: {fact}", f"scored at {scored}; lengths are chosen with --lengths"
    )


def _check_short(key: str, claim: Claim, coming: Coming) -> None:
    """A measure that gives the entry is evaluated within the native window, beside a base.

    Raises:
        InvalidInput: none is.
    """
    if key not in KEYS:
        raise InvalidInput(
            f"gate `{claim.text}`: short_context has no `{key}`", near_misses(key, KEYS)
        )
    if "base" not in coming.subjects:
        raise InvalidInput(
            f"gate `{claim.text}`: short context is held against the base, and none is given",
            "pass --base",
        )
    native, measures = coming.native_length, GIVEN_BY[key]
    within = {name: coming.within_native(name, "checkpoint") for name in measures}
    if not any(
        native in lengths if name in AT_NATIVE_EXACTLY else lengths
        for name, lengths in within.items()
    ):
        tasks = [name.partition(".")[0] for name in measures]
        raise InvalidInput(
            f"gate `{claim.text}`: short_context.{key} is given by {' or '.join(tasks)} within "
            f"the native window of {format_length(native)}, and none is evaluated there",
            f"add {tasks[-1]} to --tasks, and {native} to --lengths",
        )


def _check_difference(
    quantity: Difference, claim: Claim, tasks: Mapping[str, AbstractTask]
) -> None:
    """The same measure, or two that a task holds against each other.

    Raises:
        InvalidInput: neither, or the same score twice.
    """
    first, second = quantity.first, quantity.second
    pairs = [
        tuple(measure_name(name, side) for side in contrast)
        for name, task in tasks.items()
        for contrast in task.contrasts.values()
    ]
    contrasted = {first.measure, second.measure} in [set(pair) for pair in pairs]
    if first == second or not (first.measure == second.measure or contrasted):
        listed = "".join(f", or {a} and {b}" for a, b in pairs)
        raise InvalidInput(
            f"gate `{claim.text}`: {first} and {second} have no paired difference",
            "subtract the same measure at two lengths or of two models, such as "
            f"nll@16k-nll@8k{listed}",
        )


def _measures(batches: Sequence[Batch]) -> list[Measure]:
    return [measure for batch in batches for measure in batch.task.measures.values()]
