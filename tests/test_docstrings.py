"""What others may call says what it is: every module, public class, function and method.

A method that fills in one of its base's, or of a protocol that the class implements under another
base's name, is documented there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "giraffe_cli"
PROTOCOLS = {"Reporter", "Bar", "Backend"}
"""Classes that others implement without naming them as a base."""

Module = tuple[str, ast.Module]


def modules(package: Path = PACKAGE) -> list[Module]:
    paths = sorted(package.rglob("*.py"))
    return [(str(p.relative_to(package)), ast.parse(p.read_text("utf-8"))) for p in paths]


def classes(found: list[Module]) -> dict[str, ast.ClassDef]:
    nodes = (node for _, tree in found for node in ast.walk(tree))
    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def above(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """The classes of this package that it is made from, and the protocols."""
    for base in node.bases:
        name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
        if name in known and known[name] is not node:
            yield known[name]
            yield from above(known[name], known)


def documented(node: ast.ClassDef) -> set[str]:
    return {m.name for m in node.body if isinstance(m, ast.FunctionDef) and ast.get_docstring(m)}


def undocumented(found: list[Module]) -> list[str]:
    known = classes(found)
    shared = set().union(*(documented(known[name]) for name in PROTOCOLS & known.keys()))
    problems = []

    def visit(where: str, body: list[ast.stmt], inherited: set[str]) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node) and node.name not in inherited:
                problems.append(f"{where}{node.name}")
            if isinstance(node, ast.ClassDef):
                theirs = set().union(*map(documented, above(node, known)))
                visit(f"{where}{node.name}.", node.body, theirs | shared)

    for name, tree in found:
        if tree.body and not ast.get_docstring(tree) and name != "__main__.py":
            problems.append(name)
        visit(f"{name}: ", tree.body, set())
    return problems


def test_everything_public_is_documented():
    assert undocumented(modules()) == []


def test_what_is_not_is_named(tmp_path):
    (tmp_path / "a.py").write_text(
        '"""A."""\n\nclass Base:\n    """B."""\n\n    def told(self):\n        """T."""\n\n'
        'class Kind(Base):\n    """K."""\n\n    def told(self): ...\n    def untold(self): ...\n\n'
        "def bare(): ...\n"
    )
    (tmp_path / "b.py").write_text("x = 1\n")
    assert undocumented(modules(tmp_path)) == ["a.py: Kind.untold", "a.py: bare", "b.py"]
