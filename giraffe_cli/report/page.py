"""The report as one self-contained HTML page: no script, no network, nothing but this file.

Jinja2 escapes every value. The Content-Security-Policy allows the page's own stylesheet (by its
digest) and images written into the page, and nothing else, so even a hostile corpus or model name
cannot make a reader's browser do anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from giraffe_cli import __version__
from giraffe_cli.report import facts, scores
from giraffe_cli.report.figure import Plot
from giraffe_cli.report.serve import serve_lines
from giraffe_cli.report.verdicts import verdicts
from giraffe_cli.units import format_bytes, format_length, format_seconds

TEMPLATE, STYLESHEET = "template.html.j2", "page.css"
_MARKS = {"yes": "✓", "no": "✗", "not shown": "?", "not measured": "–"}


def render_page(
    report: Mapping[str, Any],
    results: Mapping[str, Any],
    plots: Sequence[Plot],
    run_dir: Path,
    artefacts: Mapping[str, Any],
) -> str:
    """The page's HTML.

    Args:
        report: content of `report.json`.
        results: content of `eval/results.json`; empty when the evaluation was skipped.
        plots: figures, embedded as SVG.
        run_dir: whose files are listed.
        artefacts: `rope` (rope.json), `stats` (packed/stats.json) and `run` (run.yaml), each may be
            empty.
    """
    package = resources.files("giraffe_cli.report")
    style = (package / STYLESHEET).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({TEMPLATE: (package / TEMPLATE).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        length=format_length,
        loss=scores.with_half_width,
        signed=lambda score: scores.with_half_width(score, sign=True),
        interval=scores.interval,
        signed_interval=lambda score: scores.interval(score, sign=True),
        share=lambda score: scores.percent(score["mean"]),
        share_interval=_share_interval,
        bound=lambda nats: scores.number(nats, 3, sign=True),
        data_uri=data_uri,
        mark=_MARKS.__getitem__,
        shown=_shown,
        tied=_tied,
    )
    return environment.get_template(TEMPLATE).render(
        style=Markup(style),  # our own file, and the digest below is over exactly these bytes
        style_digest=style_digest(style),
        report={"control": None, **report},
        title=page_title(report),
        verdicts=verdicts(report),
        rows=scores.length_rows(report),
        plots=plots,
        checks=(report.get("verify") or {}).get("checks", {}),
        runtimes=(report.get("verify") or {}).get("runtimes", {}),
        rope_rows=facts.rope_rows(report, artefacts["rope"]),
        training_rows=facts.training_rows(report),
        progressive=facts.progressive_rows(report),
        data_rows=facts.data_rows(report, artefacts["stats"]),
        stages=facts.stage_rows(report),
        total_time=format_seconds(facts.total_seconds(report)),
        peak_memory=_peak_memory(report),
        warnings=all_warnings(report, results),
        commands=facts.repeat_commands(report, artefacts["run"]),
        serve=serve_lines(Path(report["model_dir"])),
        files=list(facts.file_rows(run_dir)),
        versions=results.get("versions", {}),
        giraffe_version=__version__,
    )


def page_title(report: Mapping[str, Any]) -> str:
    """`calf: 1k → 16k`."""
    native, target = report["native_length"], report["target_length"]
    return f"{model_name(report)}: {format_length(native)} → {format_length(target)}"


def model_name(report: Mapping[str, Any]) -> str:
    """What the base is called: the last part of a path or hub id."""
    return Path(str(report.get("model") or "model")).name.removesuffix(".gguf")


def all_warnings(report: Mapping[str, Any], results: Mapping[str, Any]) -> list[str]:
    """The warnings of every stage, once each, in order."""
    collected = [*report.get("warnings", []), *results.get("warnings", [])]
    return list(dict.fromkeys(str(warning) for warning in collected))


def _peak_memory(report: Mapping[str, Any]) -> str:
    count = report.get("peak_memory_bytes")
    return format_bytes(count) if count else ""


def _share_interval(score: scores.Score) -> str:
    return f"{100 * score['ci_low']:.0f} to {100 * score['ci_high']:.0f}%"


def _tied(text: str) -> str:
    """No line break inside `−0.05 ± 0.01 nats` or `n = 32`."""
    return re.sub(r" (?=[±=] |nats)|(?<=[±=]) ", "\u00a0", text)


def data_uri(plot: Plot) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(plot.svg).decode()}"


def style_digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _shown(value: Any) -> str:
    """A check's value in a table cell: floats short, long lists as their size."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        few = ", ".join(_shown(entry) for entry in value)
        return few if len(value) <= 6 else f"{len(value)} values"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(entry)}" for key, entry in value.items())
    return str(value)
