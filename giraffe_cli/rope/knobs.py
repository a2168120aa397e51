"""Knobs: the documented, range-checked fields of a strategy or a position scheme."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from giraffe_cli.errors import InvalidInput, near_misses, raise_together

Knobbed = TypeVar("Knobbed")


def knob(
    default: Any,
    doc: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    or_zero: bool = False,
) -> Any:
    """A field: its default, its documentation and the closed range its numbers must lie in.

    A default that is a tuple makes a list of numbers, each within the range. `or_zero` allows 0
    besides the range, for a knob whose 0 means "derived"; its `doc` says from what.
    """
    metadata = {"doc": doc, "low": low, "high": high, "or_zero": or_zero}
    return dataclasses.field(default=default, metadata=metadata)


def check_knobs(owner: Any) -> None:
    """Hold every knob of the dataclass instance `owner` against its type and range.

    Raises:
        InvalidInput: every knob of another type or outside its range, naming the range.
    """
    found = (_problem(field, getattr(owner, field.name)) for field in dataclasses.fields(owner))
    raise_together([problem for problem in found if problem], f"knobs of {type(owner).__name__}")


def with_knobs(kind: type[Knobbed], name: str, knobs: Mapping[str, Any]) -> Knobbed:
    """`kind(**knobs)`.

    Raises:
        InvalidInput: an unknown knob, or one that `kind` refuses.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for given in knobs:
        if given not in known:
            hint = near_misses(given, known) if known else f"`{name}` has no knobs"
            raise InvalidInput(f"`{given}` is no knob of `{name}`", hint)
    return kind(**knobs)


def knob_values(owner: Any) -> dict[str, Any]:
    """The knobs of the dataclass instance `owner` as JSON gives them back: tuples are lists."""
    values = dataclasses.asdict(owner)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(field: dataclasses.Field[Any], value: Any) -> str | None:
    """What is wrong with a value; an int may stand for a float, a bool for nothing else."""
    expected = type(field.default)
    if expected is tuple:
        if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
            return f"{field.name} is {value!r}, must be a list of numbers"
        named = ((f"{field.name}[{i}]", number) for i, number in enumerate(value))
        return next((text for name, n in named if (text := _range_problem(field, name, n))), None)
    fits = _is_number(value) if expected is float else type(value) is expected
    if not fits:
        return f"{field.name} is {value!r}, must be of type {expected.__name__}"
    return _range_problem(field, field.name, value) if _is_number(value) else None


def _range_problem(field: dataclasses.Field[Any], name: str, value: float) -> str | None:
    low, high, or_zero = (field.metadata[key] for key in ("low", "high", "or_zero"))
    if low <= value <= high or (or_zero and value == 0):
        return None
    return f"{name} is {value}, must {'be 0 or ' if or_zero else ''}lie in [{low:g}, {high:g}]"
