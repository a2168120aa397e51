"""What every section of a config is, and the types of its knobs."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

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
