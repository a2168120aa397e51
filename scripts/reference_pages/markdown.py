"""What every reference page is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", lead, *parts]) + "\n"


def table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def sentence(text: str) -> str:
    """With a capital, unless it begins with a symbol or a name, and a full stop."""
    text = " ".join(text.split())
    first = text.partition(" ")[0]
    begun = text[:1].upper() + text[1:] if len(first) > 1 and "_" not in first else text
    return begun + ("" if text.endswith((".", "?")) else ".")


def escape(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_<>\[\]{}#])", r"\\\1", text)
