"""What every section of a config is, and the types of its knobs."""

from __future__ import annotations

import math
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from giraffe_cli.errors import GiraffeError
from giraffe_cli.units import parse_bytes, parse_length

AUTO = "auto"
"""The strategy that is chosen by measurement."""


def _length(value: Any) -> int:
    try:
        return parse_length(value)
    except GiraffeError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


def _size(value: Any) -> int:
    try:
        return parse_bytes(value)
    except GiraffeError as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; a knob written so is a number."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return number if not isinstance(number, float) or math.isfinite(number) else value


def switch(value: Any) -> Any:
    """YAML 1.1 reads `on` and `off` as truth values; a knob written so is the word."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def yes_or_no(value: Any) -> Any:
    """As `switch`, of `yes` and `no`."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


_Whole = Annotated[int, Field(ge=1, lt=10**18)]
_LengthText = Annotated[str, Field(pattern=r"^\s*[0-9]{1,18}[kKmM]?\s*$")]
_SizeText = Annotated[str, Field(pattern=r"^\s*[0-9]{1,18}(\.[0-9]{1,18})?\s*[kKmMgGtT]?[bB]?\s*$")]
Length = Annotated[int, BeforeValidator(_length, json_schema_input_type=_Whole | _LengthText)]
Size = Annotated[int, BeforeValidator(_size, json_schema_input_type=_Whole | _SizeText)]
Knobs = dict[str, Annotated[float | int | bool | str | list[float], BeforeValidator(_number)]]


class Section(BaseModel):
    """A group of knobs; unknown keys are errors, and the text under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take `true` for 1, and YAML 1.1 `yes` for `true`."""
        kinds = _kinds_of(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"{value} is no number")
        return value


def _kinds_of(annotation: Any) -> set[Any]:
    """The types that a union or an annotated type is made of."""
    parts = get_args(annotation) if get_origin(annotation) in (Annotated, Union, UnionType) else ()
    return set().union(*map(_kinds_of, parts)) if parts else {annotation}
