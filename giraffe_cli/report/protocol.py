"""How an evaluation was done, and what differs between several of them.

Scores of two evaluations may be set against each other only where the same samples were scored in
the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def protocol(results: Mapping[str, Any]) -> dict[str, Any]:
    """What bears on the scores, by name; knobs by task, as two evaluations may share only some."""
    if not results:
        return {}
    settings, models = results.get("settings", {}), results.get("models", {})
    return {
        "suite": results.get("suite"),
        "seed": results.get("seed"),
        "documents": settings.get("documents"),
        "chat template": settings.get("chat"),
        "evaluator": models.get("evaluator", models.get("base", {})).get("sha256"),
        "dtype": models.get("checkpoint", {}).get("dtype"),
        "tasks": settings.get("tasks", {}),
    }


def differing(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what differs between those that have one, knobs of a task as `nll settings`.

    The evaluator matters to `longppl` alone; documents only where a task reads some.
    """
    known = [entry for entry in protocols if entry]
    tasks = [entry["tasks"] for entry in known]
    named = [
        f"the settings of {task}"
        for task in dict.fromkeys(task for entry in tasks for task in entry)
        if not _agree(entry[task] for entry in tasks if task in entry)
    ]
    plain = ["suite", "seed", "documents", "chat template", "dtype"]
    if sum("longppl" in entry for entry in tasks) > 1:
        plain.append("evaluator")
    return [name for name in plain if not _agree(entry[name] for entry in known)] + named


def _agree(values: Any) -> bool:
    first, *others = [*values] or [None]
    return all(value == first for value in others)
