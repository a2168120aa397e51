"""Every command with its arguments, options and examples, from the command line itself."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from markdown import page, table

from giraffe_cli.cli.app import COMMANDS, make_app

LEAD = """Every command with its arguments, options and examples, as `--help` shows them. With
`--json` a command writes one object to stdout; all answer with the same [exit
codes](errors.md#exit-codes)."""
WORDS = {str: "text", int: "whole number", float: "number", bool: "switch", Path: "path"}


def commands_page() -> str:
    found = typer.main.get_command(make_app())
    parts = [part for name in COMMANDS for part in _parts(f"giraffe {name}", found, name)]
    return page("Commands", " ".join(LEAD.split()), parts)


def _parts(title: str, parent: Any, name: str) -> Iterator[str]:
    """A command, or each command of a group."""
    command = parent.commands[name]
    if hasattr(command, "commands"):
        for inner in command.commands:
            yield from _parts(f"{title} {inner}", command, inner)
        return
    yield f"## {title}"
    yield textwrap.dedent(command.help or "").strip()
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    shown = [one for one in command.params if one.name in hints and not one.hidden]
    rows = (_row(one, hints[one.name]) for one in shown)
    yield table(["option", "value", "what it says"], rows)
    lines = (line.removesuffix("\\n").strip() for line in (command.epilog or "").splitlines())
    examples = [line for line in lines if re.match(r"(giraffe|cat) ", line)]
    yield "```\n" + "\n".join(examples) + "\n```"


def _row(parameter: Any, hint: Any) -> list[str]:
    flags = ", ".join(f"`{flag}`" for flag in parameter.opts if flag.startswith("-"))
    default = parameter.default
    is_plain = isinstance(default, str | int | float | Path) and not isinstance(default, bool)
    told = f" Default: `{default}`." if is_plain and not callable(default) else ""
    needed = " Required." if parameter.required else ""
    return [flags or f"`{parameter.name.upper()}`", _kind(hint), f"{parameter.help}{told}{needed}"]


def _kind(hint: Any) -> str:
    """`text`, `path, repeatable`, … of `str | None`, `list[Path]`, …"""
    if isinstance(hint, types.UnionType):
        return _kind(next(one for one in typing.get_args(hint) if one is not type(None)))
    if typing.get_origin(hint) is list:
        return f"{_kind(typing.get_args(hint)[0])}, repeatable"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))
