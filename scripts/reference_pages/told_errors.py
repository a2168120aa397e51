"""Exit codes, and every error that the package raises with a text of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from files import PACKAGE
from markdown import escape, page, table

from giraffe_cli import errors

LEAD = """An error says what was found, what was needed and what to run, and ends the command with
one of these codes; anything else is a traceback, and a bug. `GIRAFFE_DEBUG=1` shows the traceback
of both. A … stands for a value."""


def errors_page() -> str:
    kinds = {name: kind for name, kind in vars(errors).items() if _is_error(kind)}
    codes: dict[int, list[tuple[str, Any]]] = {}
    for name, kind in kinds.items():
        codes.setdefault(kind.exit_code, []).append((name, kind))
    rows = [["0", "", "Done."]]
    rows += [
        [str(code), _names(of), _first_sentence(of[0][1])] for code, of in sorted(codes.items())
    ]
    parts = ["## Exit codes", table(["code", "error", "meaning"], rows)]
    raised = list(raised_errors())
    for name, kind in kinds.items():
        found = sorted({(message, hint) for kind, message, hint in raised if kind == name})
        if found:
            parts.append(f"## {name}, exit code {kind.exit_code}")
            parts.append(table(["it says", "hint"], found))
    return page("Errors", " ".join(LEAD.split()), parts)


def _names(of: list[tuple[str, Any]]) -> str:
    return ", ".join(f"`{name}`" for name, _ in of)


def _first_sentence(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].split(". ")[0].rstrip(".") + "."


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, errors.GiraffeError)


def raised_errors() -> Iterator[tuple[str, str, str]]:
    """(class, message, hint) of each `raise Kind("…", "…")` in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            call = node.exc if isinstance(node, ast.Raise) else None
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            told = [_text(argument) for argument in call.args[:2]]
            if _is_error(getattr(errors, call.func.id, None)) and told and told[0].strip("…"):
                yield call.func.id, told[0], told[1] if len(told) > 1 else ""


def _text(node: ast.expr) -> str:
    """Of a string or an f-string; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return escape(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    return "".join(
        escape(str(part.value)) if isinstance(part, ast.Constant) else "…" for part in node.values
    )
