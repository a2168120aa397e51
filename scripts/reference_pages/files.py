"""What files hold, from the code that writes them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import page, sentence, table

import giraffe_cli
from giraffe_cli.evals.schema import results_schema

PACKAGE = Path(giraffe_cli.__file__).parent
LEAD = """What the files hold that others may read, from the code that writes them. Which file lies
where, and which keys of `--json` stay: [Design](../design.md#a-run-on-disk)."""


def files_page() -> str:
    parts = [
        "## run.yaml and configs",
        "The [config](config.md), with every default resolved.",
        "## rope.json",
        table(["key", "type", "what it is"], _fields("rope/base.py", "RopeTable")),
        "## rows-*.parquet",
        "```text\n" + (ast.get_docstring(_tree("corpus/rows.py")) or "") + "\n```",
        "## results.json",
        *_schema_parts(results_schema()),
    ]
    return page("File formats", " ".join(LEAD.split()), parts)


def _tree(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def _fields(file: str, name: str) -> Iterator[list[str]]:
    """Fields of a class with the text under each, as they stand in the source."""
    body = next(n for n in _tree(file).body if isinstance(n, ast.ClassDef) and n.name == name).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign):
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            doc = str(after.value.value) if told else ""
            yield [f"`{ast.unparse(node.target)}`", f"`{ast.unparse(node.annotation)}`", doc]


def _schema_parts(schema: dict[str, Any]) -> Iterator[str]:
    yield sentence(schema.get("description", "")) + " The [schema](../results.schema.json) itself."
    yield table(["key", "what it is"], _rows(schema))
    for name, part in schema["$defs"].items():
        yield f"### {name}"
        yield sentence(part.get("description", ""))
        yield table(["key", "what it is"], _rows(part))


def _rows(schema: dict[str, Any]) -> Iterator[list[str]]:
    needed = schema.get("required", [])
    for key, value in schema.get("properties", {}).items():
        kind = value.get("type") or value.get("$ref", "").rpartition("/")[2]
        told = f"{value.get('description', '')} {f'({kind})' if kind else ''}"
        yield [f"`{key}`", told + ("" if key in needed else " May be absent.")]
