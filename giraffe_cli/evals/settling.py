"""Gates of an evaluation tested on its samples.

A difference is taken sample by sample from the scoreboards, so any two lengths and models of one
measure can be held against each other; two means are never subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from giraffe_cli.evals.scoreboard import Scoreboard, difference
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
    sides,
)
from giraffe_cli.units import format_length


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
