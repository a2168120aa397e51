"""Per-pair divisors from a file, in the forms in which they are published.

[1.0, 1.02, …]                                             a JSON list
{"long_factor": [1.0, …], "attention_factor": 1.08}        what `giraffe rope search` writes
{"rope_scaling": {"long_factor": [1.0, …]}}                a config.json
1.0,1.02,…⏎1.0,1.02,…                                      LongRoPE: the same row for each layer
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.errors import InvalidInput

FORMS = "a JSON list, a JSON object with long_factor such as a config.json, or numbers as text"


class Published(NamedTuple):
    """What a file holds, unchecked but for being a list."""

    factors: tuple[Any, ...]
    attention: Any = 0.0
    """The `attention_factor` beside them, else the `long_mscale`; 0 where there is neither."""


def read_factors(path: Path) -> Published:
    """The numbers in `path`; text is made of floats.

    Raises:
        InvalidInput: no readable file, or a content of none of the forms.
    """
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"factors: {path} cannot be read: {error}", f"give {FORMS}") from error
    if text.startswith(("[", "{")):
        return _from_json(text, path)
    return Published(_from_text(text, path))


def _from_json(text: str, path: Path) -> Published:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"factors: {path} is not JSON: {error}", f"give {FORMS}") from error
    attention = 0.0
    if isinstance(value, Mapping):
        group = _with_factors(value)
        attention = group.get("attention_factor") or group.get("long_mscale") or 0.0
        value = group.get("long_factor")
    if not isinstance(value, list):
        raise InvalidInput(
            f"factors: {path} has no long_factor at its top, in rope_parameters or in rope_scaling",
            f"give {FORMS}",
        )
    return Published(tuple(value), attention)


def _with_factors(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first found; `rope_scaling` before `rope_parameters`, as transformers reads them."""
    groups = [value, value.get("rope_scaling"), value.get("rope_parameters")]
    held = (g for g in groups if isinstance(g, Mapping) and "long_factor" in g)
    return next(held, {})


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
