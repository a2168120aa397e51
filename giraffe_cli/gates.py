"""Quality gates: thresholds tested against an interval's bound, never against the mean.

    nll@16k-nll@8k<0                  the whole interval of the paired difference lies below 0
    nll@16k-base:nll@16k<=0.1         another model's score is named before the measure
    passkey.ranked@16k>=0.5           the lower bound of a score
    short_context.delta_nll<=0.02     what short context lost
    effective_length.passkey>=16k     see the rules in results.json

`<` and `<=` test the upper end of the interval, `>` and `>=` the lower one.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.units import brief, format_length, parse_length

MAX_LOSS_RISE = 0.05
"""Nats: what the long end and the short end may lose before a run is called out."""
OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
FORMS = (
    "write nll@16k-nll@8k<0, passkey@16k>=0.9, nll@16k-base:nll@16k<0, "
    "short_context.delta_nll<=0.02 or effective_length.passkey>=16k"
)
_SUBJECT = r"(?:(\w+):)?"
_MEASURE = r"([A-Za-z][\w.-]*)"
_SIDE = rf"{_SUBJECT}{_MEASURE}@(\w+)"


@dataclass(frozen=True)
class Side:
    """The score of one model by one measure at one length."""

    subject: str
    measure: str
    length: int

    def __str__(self) -> str:
        owner = "" if self.subject == "checkpoint" else f"{self.subject}:"
        return f"{owner}{self.measure}@{format_length(self.length)}"


@dataclass(frozen=True)
class Difference:
    """`first` - `second`, sample by sample."""

    first: Side
    second: Side


@dataclass(frozen=True)
class Reach:
    """The effective length of a model by a measure."""

    subject: str
    measure: str


@dataclass(frozen=True)
class Short:
    """An entry of `short_context`."""

    key: str


@dataclass(frozen=True)
class Claim:
    """What a gate says, before it is tested."""

    name: str
    """The quantity as it was written: `nll@16k-nll@8k`."""
    quantity: Side | Difference | Reach | Short
    op: str
    threshold: float

    @property
    def text(self) -> str:
        """`nll@16k-nll@8k<0`."""
        return f"{self.name}{self.op}{_number(self.threshold, self.name, '')}"


@dataclass(frozen=True)
class Gate:
    """One tested claim."""

    name: str
    """The quantity, such as `nll@16k-nll@1k`."""
    op: str
    threshold: float
    """A length in tokens for an effective length."""
    bound: float | None
    """The 95 % bound that was tested, or the effective length; None when there is none."""
    ok: bool
    note: str = ""
    """Why nothing could be tested; empty otherwise."""

    @property
    def sentence(self) -> str:
        """`nll@16k-nll@1k: upper bound +0.012 (needs <= +0.050)`."""
        needs = f"(needs {self.op} {_number(self.threshold, self.name, self._form)})"
        if self.bound is None or self.note:
            return f"{self.name}: {self.note} {needs}"
        side = "" if _is_reach(self.name) else f"{'upper' if '<' in self.op else 'lower'} bound "
        return f"{self.name}: {side}{_number(self.bound, self.name, self._form)} {needs}"

    @property
    def digits(self) -> int:
        """Decimals that tell bound and threshold apart, from 3 to 6."""
        values = [self.threshold, *([] if self.bound is None else [self.bound])]
        for digits in (3, 4, 5):
            shown = {round(value, digits) for value in values}
            if len(shown) == len(set(values)) and round(self.threshold, digits) == self.threshold:
                return digits
        return 6

    @property
    def _form(self) -> str:
        return f"+.{self.digits}f" if self.digits < 6 else "+.6g"


def parse_gate(text: str) -> Claim:
    """The claim that `text` makes; only its form is checked here.

    Raises:
        InvalidInput: it has no form of a gate.
    """
    split = re.fullmatch(r"\s*([^<>=]+?)\s*(<=|>=|<|>)\s*([^<>=]+?)\s*", text)
    try:
        if split:
            quantity = _quantity(split[1])
            parse = parse_length if isinstance(quantity, Reach) else _finite
            return Claim(split[1], quantity, split[2], parse(split[3]))
    except GiraffeError as error:
        raise InvalidInput(f"gate `{brief(text)}`: {error.message}", error.hint) from error
    raise InvalidInput(f"gate `{brief(text)}` is no comparison with a number", FORMS)


def _quantity(text: str) -> Side | Difference | Reach | Short:
    if found := re.fullmatch(_SIDE, text):
        return _side(*found.groups())
    if found := re.fullmatch(rf"{_SIDE}\s*-\s*{_SIDE}", text):
        parts = found.groups()
        return Difference(_side(*parts[:3]), _side(*parts[3:]))
    if found := re.fullmatch(rf"{_SUBJECT}effective_length\.{_MEASURE}", text):
        return Reach(found[1] or "checkpoint", found[2])
    if found := re.fullmatch(r"short_context\.(\w+)", text):
        return Short(found[1])
    raise InvalidInput(f"`{brief(text)}` names no score", FORMS)


def _side(subject: str | None, measure: str, length: str) -> Side:
    return Side(subject or "checkpoint", measure, parse_length(length))


def _finite(text: str) -> float:
    """Raises InvalidInput unless `text` is a number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"`{brief(text)}` is no number", FORMS)
    return number


def sides(quantity: Side | Difference | Reach | Short) -> tuple[Side | Reach, ...]:
    """The scores that a quantity is made of."""
    if isinstance(quantity, Difference):
        return quantity.first, quantity.second
    return () if isinstance(quantity, Short) else (quantity,)


def judged(name: str, score: Mapping[str, Any], op: str, threshold: float) -> Gate:
    """The claim held against the bound of `score` that makes it harder to pass."""
    bound = score["ci_high" if "<" in op else "ci_low"]
    if score["clusters"] < 2 and score["ci_low"] == score["ci_high"]:
        return Gate(name, op, threshold, bound, False, "one document has no interval")
    return Gate(name, op, threshold, bound, OPERATORS[op](bound, threshold))


def default_gates(results: dict[str, Any], native_length: int, target_length: int) -> list[Gate]:
    """Long context costs nothing against short, and short context kept, where both were scored."""
    gates = []
    nested = results.get("paired", {}).get("nll", {}).get("length_minus_native", {})
    long_end = nested.get("checkpoint", {}).get(str(target_length))
    if long_end:
        name = f"nll@{format_length(target_length)}-nll@{format_length(native_length)}"
        gates.append(judged(name, long_end, "<=", MAX_LOSS_RISE))
    short = results.get("short_context", {}).get("delta_nll")
    if short:
        gates.append(judged("short_context.delta_nll", short, "<=", MAX_LOSS_RISE))
    return gates


def _is_reach(name: str) -> bool:
    return "effective_length." in name


def _number(value: float, name: str, form: str = "+.3f") -> str:
    """A length for an effective length, else a number."""
    return format_length(int(value)) if _is_reach(name) else format(value, form or "g")
