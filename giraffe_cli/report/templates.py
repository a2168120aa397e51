"""How a page comes to be: one file, no script, nothing fetched from anywhere.

Jinja2 escapes every value, and control characters become signs. The Content-Security-Policy allows
the page's own stylesheet (by its digest) and images written into the page, and nothing else, so
even a hostile corpus or model name cannot make a reader's browser do anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from giraffe_cli import __version__
from giraffe_cli.gates import Gate
from giraffe_cli.report import numbers
from giraffe_cli.report.figure import Plot
from giraffe_cli.units import format_length, visible

STYLESHEET = "page.css"
MARKS = {"yes": "✓", "no": "✗", "not shown": "?", "not measured": "–"}


def render(template: str, values: Mapping[str, Any], styles: tuple[str, ...] = ()) -> str:
    """The HTML of `template`, a file of this folder; `styles` are added to the stylesheet."""
    package = resources.files("giraffe_cli.report")
    sheets = (STYLESHEET, *styles)
    style = "".join((package / name).read_text(encoding="utf-8") for name in sheets)
    files = [file for file in package.iterdir() if file.name.endswith(".html.j2")]
    environment = Environment(
        loader=DictLoader({file.name: file.read_text(encoding="utf-8") for file in files}),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        tokens=format_length,
        count="{:,}".format,
        share=numbers.exact_percent,
        gate_bound=lambda gate: gate_number(gate, "bound") or gate.get("note", ""),
        gate_threshold=lambda gate: gate_number(gate, "threshold"),
        data_uri=data_uri,
        mark=MARKS.__getitem__,
        shown=shown,
        tied=tied,
        sentence=sentence,
    )
    return environment.get_template(template).render(
        style=Markup(style),  # our own files, and the digest below is over exactly these bytes
        style_digest=style_digest(style),
        giraffe_version=__version__,
        **values,
    )


def harmless(value: Any) -> Any:
    """What is written into the page: text without characters that command a terminal."""
    return visible(value) if type(value) is str and not value.isprintable() else value


def data_uri(plot: Plot) -> str:
    """The figure as the source of an image."""
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.svg).decode()}"


def style_digest(text: str) -> str:
    """sha256 as the policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def tied(text: str) -> str:
    """No line break inside `−0.05 ± 0.01 nats` or `n = 32`."""
    return re.sub(r" (?=[±=] |nats)|(?<=[±=]) ", "\u00a0", text)


def gate_number(gate: Mapping[str, Any], key: str) -> str:
    """A gate's bound or threshold, as a length where it is one; empty where there is none."""
    value = gate[key]
    if value is None:
        return ""
    if "effective_length." in gate["name"]:
        return format_length(int(value))
    return numbers.number(value, Gate(**gate).digits, sign=True)


def sentence(text: str) -> str:
    """With a capital first letter; the rest stays as it is."""
    return text[:1].upper() + text[1:]


def shown(value: Any) -> str:
    """A value in a table cell: floats short, long lists as their size."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        few = ", ".join(shown(entry) for entry in value)
        return few if len(value) <= 6 else f"{len(value)} values"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(entry)}" for key, entry in value.items())
    return str(value)
