"""The commands that run, verify and evaluate again what a report is about."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from giraffe_cli.units import format_length


def repeat_commands(report: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What to type to run, verify and evaluate again; `run` is the resolved config, `run.yaml`."""
    folder, model = (shlex.quote(str(report[key])) for key in ("run_dir", "model_dir"))
    again = shlex.quote(f"{report['run_dir']}-again")
    commands = [
        f"giraffe extend --config {folder}/run.yaml --out {again}",
        f"giraffe verify {model}",
    ]
    lengths = (report.get("evaluation") or {}).get("lengths", [])
    if lengths:
        shown = ",".join(format_length(length) for length in lengths)
        base = shlex.quote(str(report.get("model", "BASE")))
        options = "".join(f" {option}" for option in _evaluation_options(run))
        commands.append(f"giraffe eval {model} --base {base} --lengths {shown}{options}")
    return commands


def _evaluation_options(run: Mapping[str, Any]) -> Iterator[str]:
    """The flags of `giraffe eval` that a run's config stands for."""
    settings = run.get("eval", {})
    yield from (f"--data {shlex.quote(source)}" for source in settings.get("data", []))
    if settings.get("tasks"):
        yield f"--tasks {','.join(settings['tasks'])}"
    if "documents" in settings:
        yield f"--documents {settings['documents']}"
    for task, knobs in settings.get("knobs", {}).items():
        yield from (f"--set {shlex.quote(f'{task}.{name}={v}')}" for name, v in knobs.items())
    yield from _what_is_read(settings)
    yield from (f"--gate {shlex.quote(gate)}" for gate in settings.get("gates", []))
    if settings.get("threshold") is not None:
        yield f"--threshold {settings['threshold']:g}"
    if run.get("seed"):
        yield f"--seed {run['seed']}"
    if run.get("dtype", "auto") != "auto":
        yield f"--dtype {run['dtype']}"


def _what_is_read(settings: Mapping[str, Any]) -> Iterator[str]:
    """Corpora, files and models besides the held-out text, and how questions are asked."""
    for option, key in (("--haystack", "haystack"), ("--other-data", "other_data")):
        yield from (f"{option} {shlex.quote(source)}" for source in settings.get(key, []))
    for name, path in settings.get("files", {}).items():
        yield f"--file {shlex.quote(f'{name}={path}')}"
    yield from (f"--harness {task}" for task in settings.get("harness", []))
    if settings.get("evaluator"):
        yield f"--evaluator {shlex.quote(settings['evaluator'])}"
    if settings.get("chat"):
        yield "--chat"
