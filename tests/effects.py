"""What the tests of options and knobs share: how an effect is shown, or where it is."""

from __future__ import annotations

import ast
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

TESTS = Path(__file__).parent


class HandedOver(Exception):
    """A command has handed over to what does its work."""


@dataclass(frozen=True)
class ShownBy:
    """`file.py::function` (or `file.py::Class::function`), which perturbs it and sees the effect:
    its source contains `text`, by default the name."""

    test: str
    text: str = ""


@dataclass(frozen=True)
class NoEffect:
    """By design it changes nothing that can be compared; `reason` is what the help or a docstring
    of `file` promises, word by word."""

    file: str
    reason: str


def source_of(test: str) -> str:
    """The text of a test function; fails where it does not exist."""
    file, *path = test.split("::")
    text = (TESTS / file).read_text(encoding="utf-8")
    body = ast.parse(text).body
    for name in path:
        (node,) = (one for one in body if getattr(one, "name", None) == name)
        body = node.body
    lines = text.splitlines()
    first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
    return "\n".join(lines[first - 1 : node.end_lineno])


def check_elsewhere(entry: ShownBy | NoEffect, name: str) -> None:
    """The named test still contains the name, the named file still gives the reason."""
    if isinstance(entry, ShownBy):
        assert (entry.text or name) in source_of(entry.test), f"{entry.test} knows no {name}"
        return
    told = " ".join((TESTS.parent / entry.file).read_text(encoding="utf-8").split())
    assert entry.reason in told, f"{entry.file} does not say `{entry.reason}`"


def plain(value: Any) -> Any:
    """Handed-over arguments as something that can be compared."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "as_json"):
        return {"as_json": value.as_json}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    known = str | int | float | bool | Path | None
    return str(value) if isinstance(value, known) else type(value).__name__
