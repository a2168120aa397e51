"""Data files of tasks: JSON lines, gzipped or not, checked field by field.

read_rows(material, "lambada", {"text": str})    → [{"text": "In my palm is a clear stone ..."}]
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Material


def read_rows(material: Material, task: str, fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """Every row of the file of `task`.

    Raises:
        InvalidInput: no file was given, or it is missing, empty or not of this form.
    """
    wanted = ", ".join(f"`{name}`" for name in fields)
    if task not in material.files:
        raise InvalidInput(
            f"task `{task}` needs a data file, JSON lines with {wanted}",
            f"--file {task}=PATH, or leave the task out of --tasks",
        )
    path, rows = material.files[task], []
    for number, line in enumerate(_lines(path, task), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or any(
            not isinstance(row.get(name), kind) for name, kind in fields.items()
        ):
            raise InvalidInput(
                f"task `{task}`: line {number} of {path} is no JSON object with {wanted}",
                f"--file {task}=PATH of another file",
            )
        rows.append(row)
    if not rows:
        raise InvalidInput(f"task `{task}`: {path} is empty", f"--file {task}=PATH of another file")
    return rows


def choose(
    rows: Sequence[dict[str, Any]], count: int, seed: int
) -> list[tuple[int, dict[str, Any]]]:
    """The first `count` rows of a shuffle by `seed`, or all, each with its place in the file."""
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [(int(place), rows[place]) for place in order]


def check_room(task: str, place: int, used: int, length: int) -> None:
    """A row and its answer fit into `length` tokens.

    Raises:
        InvalidInput: they do not.
    """
    if used > length:
        raise InvalidInput(
            f"task `{task}`: row {place} takes {used} tokens, the length is {length}",
            "evaluate at a longer length within the native window, or leave the task out",
        )


def _lines(path: str, task: str) -> list[bytes]:
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as handle:
            return [line for line in handle.read().splitlines() if line.strip()]
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(
            f"task `{task}`: {path} cannot be read: {reason}", f"--file {task}=PATH"
        ) from error
