"""The last stage: report.json, report.html, plots and model card, from one set of numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from giraffe_cli.config.files import read_yaml
from giraffe_cli.report.card import write_card
from giraffe_cli.report.choice import Choice
from giraffe_cli.report.evaluation_part import EvaluationPart
from giraffe_cli.report.loss_plot import Border, joined
from giraffe_cli.report.page import render_page
from giraffe_cli.report.plots import training_plots, write_plots
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.run_files import stage_folders
from giraffe_cli.rundir import atomic_open, make_folder, read_json, write_sealed
from giraffe_cli.units import format_length


def write_report(report: Mapping[str, Any], run_dir: Path, model_dir: Path) -> None:
    """Write everything a reader gets; run again, the same inputs give the same plots and card.

    Args:
        report: the keys promised for `report.json`, with `evaluation`, the content of
            `eval/results.json`, `{}` when the evaluation was skipped; `verdicts` are added to what
            is written.
        run_dir: gets `report.json`, `report.html` and `eval/*.png|svg`; `run.yaml`, `plan.json`,
            `rope.json`, `metrics.jsonl` and `packed/stats.json` are read from it where they exist.
        model_dir: gets `README.md`.

    Raises:
        GiraffeError: a file cannot be written.
        InvalidInput: `model_dir` holds no readable `config.json`.
    """
    part = EvaluationPart.of(Scored.of_run(report))
    training = training_plots(*all_metrics(report, run_dir))
    choice = Choice.of(report.get("rope_choice") or {}, str(report["strategy"]))
    plots = [*part.all_plots, *training, *(choice.plots if choice else [])]
    write_plots(plots, make_folder(run_dir / "eval"))
    write_card(report, model_dir, _optional(run_dir / "plan.json"))
    artefacts = {
        "rope": _optional(run_dir / "rope.json"),
        "stats": _optional(run_dir / "packed" / "stats.json"),
        "run": read_yaml(run_dir / "run.yaml") if (run_dir / "run.yaml").exists() else {},
    }
    page = render_page(report, part, training, run_dir, artefacts, choice)
    verdicts = [asdict(verdict) for verdict in run_verdicts(report)]
    write_sealed(run_dir / "report.json", {**report, "verdicts": verdicts})
    with atomic_open(run_dir / "report.html", "w") as handle:
        handle.write(page)


def all_metrics(
    report: Mapping[str, Any], run_dir: Path
) -> tuple[list[dict[str, Any]], list[Border]]:
    """One object a training step over all stages of the run, and where each stage begins."""
    targets = [stage["target_length"] for stage in report.get("stages", [])]
    targets = targets or [report["target_length"]]
    stages = [read_metrics(f / "metrics.jsonl") for f in stage_folders(run_dir, targets)]
    return joined(stages, [format_length(target) for target in targets])


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One object a training step; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    metrics = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            metrics.append(json.loads(line))
        except ValueError:
            continue
    return metrics


def _optional(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value: dict[str, Any] = read_json(path)
    return value
