"""The report of a run as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_source import short_name
from giraffe_cli.report import facts, facts_training
from giraffe_cli.report.choice import Choice
from giraffe_cli.report.evaluation_part import EvaluationPart
from giraffe_cli.report.figure import Plot
from giraffe_cli.report.repeat import repeat_commands
from giraffe_cli.report.serve import serve_lines
from giraffe_cli.report.templates import render
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.units import format_bytes, format_length, format_seconds

TEMPLATE = "template.html.j2"


def render_page(
    report: Mapping[str, Any],
    part: EvaluationPart,
    training: Sequence[Plot],
    run_dir: Path,
    artefacts: Mapping[str, Any],
    choice: Choice | None = None,
) -> str:
    """The page's HTML.

    Args:
        report: content of `report.json`.
        part: what is shown of its evaluation.
        training: pictures of the training.
        run_dir: whose files are listed.
        artefacts: `rope` (rope.json), `stats` (packed/stats.json) and `run` (run.yaml), each may be
            empty.
        choice: why the run has its RoPE table; None where the user named it.
    """
    results = part.scored.results
    return render(
        TEMPLATE,
        {
            "report": {"control": None, **report},
            "title": page_title(report),
            "verdicts": run_verdicts(report),
            "part": part,
            "plots": [*part.plots, *training],
            "checks": (report.get("verify") or {}).get("checks", {}),
            "runtimes": (report.get("verify") or {}).get("runtimes", {}),
            "choice": choice,
            "rope_rows": facts.rope_rows(report, artefacts["rope"]),
            "training_rows": facts_training.training_rows(report),
            "progressive": facts_training.progressive_rows(report),
            "data_rows": facts.data_rows(report, artefacts["stats"]),
            "stages": facts.stage_rows(report),
            "total_time": format_seconds(facts.total_seconds(report)),
            "peak_memory": _peak_memory(report),
            "warnings": all_warnings(report),
            "commands": repeat_commands(report, artefacts["run"]),
            "serve": serve_lines(Path(report["model_dir"])),
            "files": list(facts.file_rows(run_dir)),
            "versions": {
                name: version
                for name, version in results.get("versions", {}).items()
                if name != "giraffe"
            },
        },
    )


def page_title(report: Mapping[str, Any]) -> str:
    """`calf: 1k → 16k`."""
    native, target = report["native_length"], report["target_length"]
    return f"{model_name(report)}: {format_length(native)} → {format_length(target)}"


def model_name(report: Mapping[str, Any]) -> str:
    """What the base is called: the last part of a path or hub id."""
    return short_name(str(report.get("model") or "model"))


def all_warnings(report: Mapping[str, Any]) -> list[str]:
    """The warnings of every stage, once each, in order."""
    evaluation = report.get("evaluation") or {}
    collected = [*report.get("warnings", []), *evaluation.get("warnings", [])]
    return list(dict.fromkeys(str(warning) for warning in collected))


def _peak_memory(report: Mapping[str, Any]) -> str:
    count = report.get("peak_memory_bytes")
    return format_bytes(count) if count else ""
