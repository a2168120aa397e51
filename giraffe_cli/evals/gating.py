"""Gates of an evaluation: names checked before a model is opened, claims tested on the samples.

A difference is taken sample by sample from the scoreboards, so any two lengths and models of one
measure can be held against each other; two means are never subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from giraffe_cli.config import EvalConfig
from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.evals.base import AbstractTask, Measure, measure_name
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.scoreboard import Scoreboard, difference
from giraffe_cli.evals.short_context import KEYS
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


def check_gates(config: EvalConfig, batches: Sequence[Batch], subjects: Sequence[Subject]) -> None:
    """Gates and threshold bear on models, measures and lengths that are about to be evaluated.

    Raises:
        InvalidInput: one does not; with near misses and what is evaluated.
    """
    _check_threshold(config.threshold, batches)
    for claim in map(parse_gate, config.gates):
        quantity = claim.quantity
        for side in sides(quantity):
            _check_side(side, claim, batches, subjects)
        if isinstance(quantity, Short):
            _check_short(quantity.key, claim, {subject.name for subject in subjects})
        if isinstance(quantity, Difference):
            _check_difference(quantity, claim, {batch.name: batch.task for batch in batches})


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
    if threshold is not None and not any(measure.bounded for measure in _measures(batches)):
        raise InvalidInput(
            f"threshold {threshold:g} has no effect: {', '.join(b.name for b in batches)} "
            "measure no share of right answers",
            "leave it out, or add a retrieval task such as passkey",
        )


def _check_side(
    side: Side | Reach, claim: Claim, batches: Sequence[Batch], subjects: Sequence[Subject]
) -> None:
    by_name = {subject.name: subject for subject in subjects}
    if side.subject not in by_name:
        raise InvalidInput(
            f"gate `{claim.text}`: no model `{side.subject}` is evaluated",
            near_misses(side.subject, by_name),
        )
    task = next((b for b in batches if side.measure in _names(b)), None)
    if task is None:
        known = [name for batch in batches for name in _names(batch)]
        raise InvalidInput(
            f"gate `{claim.text}`: no measure `{side.measure}` is evaluated",
            near_misses(side.measure, known),
        )
    taken = {e.length for e in task.examples if by_name[side.subject].takes(e)}
    if isinstance(side, Side) and side.length not in taken:
        scored = ", ".join(map(format_length, sorted(taken)))
        raise InvalidInput(
            f"gate `{claim.text}`: `{side.subject}` is not scored on `{task.name}` at "
            f"{format_length(side.length)}",
            f"scored at {scored}; lengths are chosen with --lengths",
        )


def _check_short(key: str, claim: Claim, names: Iterable[str]) -> None:
    if key not in KEYS:
        raise InvalidInput(
            f"gate `{claim.text}`: short_context has no `{key}`", near_misses(key, KEYS)
        )
    if "base" not in names:
        raise InvalidInput(
            f"gate `{claim.text}`: short context is held against the base, and none is given",
            "pass --base",
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


def _names(batch: Batch) -> list[str]:
    return [measure_name(batch.name, key) for key in batch.task.measures]


def _measures(batches: Sequence[Batch]) -> list[Measure]:
    return [measure for batch in batches for measure in batch.task.measures.values()]
