"""Per-pair divisors from a file, in the forms in which they are published.

[1.0, 1.02, …]                                             a JSON list
{"rope_scaling": {"long_factor": [1.0, …]}}                a config.json
1.0,1.02,…⏎1.0,1.02,…                                      LongRoPE: the same row for each layer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput

FORMS = "a JSON list, a JSON object with long_factor such as a config.json, or numbers as text"


def read_factors(path: Path) -> tuple[Any, ...]:
    """The numbers in `path`, unchecked but for being a list; text is made of floats.

    Raises:
        InvalidInput: no readable file, or a content of none of the three forms.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"factors: {path} cannot be read: {error}", f"give {FORMS}") from error
    if text.startswith(("[", "{")):
        return tuple(_from_json(text, path))
    return _from_text(text, path)


def _from_json(text: str, path: Path) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"factors: {path} is not JSON: {error}", f"give {FORMS}") from error
    if isinstance(value, Mapping):
        value = _long_factor(value)
    if not isinstance(value, list):
        raise InvalidInput(
            f"factors: {path} has no long_factor at its top, in rope_parameters or in rope_scaling",
            f"give {FORMS}",
        )
    return value


def _long_factor(value: Mapping[str, Any]) -> Any:
    """The first found; `rope_scaling` before `rope_parameters`, as transformers reads them."""
    groups = [value, value.get("rope_scaling"), value.get("rope_parameters")]
    held = (g["long_factor"] for g in groups if isinstance(g, Mapping) and "long_factor" in g)
    return next(held, None)


def _from_text(text: str, path: Path) -> tuple[float, ...]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        rows = [[float(word) for word in line.replace(",", " ").split()] for line in lines]
    except ValueError as error:
        raise InvalidInput(f"factors: {path}: {error}", f"give {FORMS}") from error
    # A row for each layer, all alike: one table is all that a config can say.
    if len(rows) > 1 and len(rows[0]) > 1 and all(row == rows[0] for row in rows):
        return tuple(rows[0])
    return tuple(number for row in rows for number in row)
