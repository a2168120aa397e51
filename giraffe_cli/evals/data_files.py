"""Data files of tasks: JSON lines, gzipped or not, checked field by field; and what a task's YAML
file of lm-eval names.

read_rows(material, "lambada", {"text": str})    → [{"text": "In my palm is a clear stone ..."}]
local_files(Path("t.yaml"))                      → [t.yaml, utils.py, rows.jsonl]
"""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Material
from giraffe_cli.rundir import digest_value

Kinds: TypeAlias = type | tuple[type, ...]


def read_rows(material: Material, task: str, fields: Mapping[str, Kinds]) -> list[dict[str, Any]]:
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
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            wrong = f"is no JSON object with {wanted}"
        else:
            wrong = next(
                (_unlike(row, *field) for field in fields.items() if _unlike(row, *field)), ""
            )
        if wrong:
            raise InvalidInput(
                f"task `{task}`: line {number} of {path} {wrong}",
                f"--file {task}=PATH of another file",
            )
        rows.append(row)
    if not rows:
        raise InvalidInput(f"task `{task}`: {path} is empty", f"--file {task}=PATH of another file")
    return rows


def _unlike(row: Mapping[str, Any], name: str, kinds: Kinds) -> str:
    """What is wrong with the field `name`; empty where nothing is."""
    if name not in row:
        return f"has no `{name}`"
    if isinstance(row[name], kinds):
        return ""
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    found = type(row[name]).__name__
    return f"has {found} as `{name}`, needs {' or '.join(kind.__name__ for kind in wanted)}"


def choose(
    rows: Sequence[dict[str, Any]], count: int, seed: int
) -> list[tuple[int, dict[str, Any]]]:
    """The first `count` rows of a shuffle by `seed`, or all, each with its place in the file."""
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [(int(place), rows[place]) for place in order]


def row_cluster(token_ids: Sequence[int], candidates: Iterable[Sequence[int]]) -> str:
    """What a row counts as in intervals: a row that stands in the file again is no other sample."""
    return digest_value([[*token_ids], [[*candidate] for candidate in candidates]])[:16]


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


FUNCTION = "!function"
"""lm-eval's tag of a Python function beside the file: `!function utils.process_docs`."""


def local_files(path: Path) -> list[Path]:
    """A YAML file of lm-eval and all files of this machine that decide what it asks: those it
    includes, functions beside it, and its data, be it by path, glob or folder."""
    found, unread = list[Path](), [path]
    while unread:
        current = unread.pop()
        if current not in found:
            named = [*_texts(_parsed(current))]
            data = (text for key, text in named if key.startswith("dataset_"))
            functions = (text.split()[-1] for _, text in named if text.startswith(FUNCTION))
            code = (current.parent / f"{name.rpartition('.')[0]}.py" for name in functions)
            found += [current, *filter(Path.is_file, code), *chain(*map(_existing, data))]
            included = (current.parent / text for key, text in named if key == "include")
            unread += filter(Path.is_file, included)
    return [*dict.fromkeys(found)]


def _parsed(path: Path) -> Any:
    """The content, lm-eval's tags as `!tag value`; None where it is no YAML: lm-eval says so."""

    class Loader(yaml.SafeLoader):
        """Knows every tag."""

    Loader.add_multi_constructor("!", lambda _, tag, node: f"!{tag} {node.value}")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, ValueError):
        return None


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in `value` with the outermost key that says what it is."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            inside = key if key.startswith("dataset_") else str(name)
            yield from _texts(item, inside)


def _existing(named: str) -> list[Path]:
    """The files that a path or glob stands for; of a folder all below it."""
    # Path.glob takes no absolute pattern
    names = glob.glob(named, recursive=True) or glob.glob(glob.escape(named))  # noqa: PTH207
    paths = [Path(name) for name in sorted(names)]
    below = [[path] if path.is_file() else sorted(path.rglob("*")) for path in paths]
    return [path for part in below for path in part if path.is_file()]


def _lines(path: str, task: str) -> list[bytes]:
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as handle:
            return handle.read().splitlines()
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(
            f"task `{task}`: {path} cannot be read: {reason}", f"--file {task}=PATH"
        ) from error
