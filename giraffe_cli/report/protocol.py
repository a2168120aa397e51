"""How an evaluation was done, and what differs between several of them.

Scores of two evaluations may be set against each other only where the same samples were scored in
the same way. What an older `results.json` does not tell is not held against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from giraffe_cli.evals.base import tasks

ALWAYS = ("suite", "seed", "chat template", "dtype", "lm-eval")
TEXTS = {"documents": "documents", "haystack": "haystack", "other text": "other_text"}
"""Name → what a task says that it needs."""
DEPENDING = {
    "longest length": {"nll", "positions", "sliding", "longppl"},
    "longest length within the native window": {"short"},
    "native window": {"nll", "short"},
    "evaluator": {"longppl"},
}
"""Name → the tasks that score other tokens where it differs."""


def protocol(results: Mapping[str, Any]) -> dict[str, Any]:
    """What bears on the scores, by name, each in its parts; knobs by task and data files by name,
    as two evaluations may share only some."""
    if not results:
        return {}
    settings, models = results.get("settings", {}), results.get("models", {})
    digests, reference = settings.get("digests", {}), settings.get("reference", {})
    harness = settings.get("harness", {})
    native, lengths = results.get("native_length"), results.get("lengths", [])
    return {
        "suite": results.get("suite"),
        "seed": results.get("seed"),
        "chat template": settings.get("chat"),
        "dtype": models.get("checkpoint", {}).get("dtype"),
        "lm-eval": [harness.get("lm_eval"), harness.get("samples")],
        **{name: [settings.get(key), digests.get(key)] for name, key in TEXTS.items()},
        "longest length": max(lengths, default=None),
        "longest length within the native window": max(
            (length for length in lengths if length <= (native or 0)), default=None
        ),
        "native window": native,
        "evaluator": [reference.get(key) for key in ("sha256", "dtype", "tokens")],
        "files": settings.get("files", {}),
        "tasks": settings.get("tasks", {}),
    }


def differing(protocols: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what differs between those that have one: knobs of a task as `the settings of
    nll`, and of texts, files and lengths those that bear on a task that several share."""
    known = [entry for entry in protocols if entry]
    counted = Counter(task for entry in known for task in entry["tasks"])
    shared = {task for task, count in counted.items() if count > 1}
    bearing = {
        **{name: _needing(need) for name, need in TEXTS.items()},
        **DEPENDING,
    }
    depending = [
        name
        for name, concerned in bearing.items()
        if not _agree(e[name] for e in known if shared & concerned & e["tasks"].keys())
    ]
    plain = [name for name in ALWAYS if not _agree(entry[name] for entry in known)]
    return [*plain, *depending, *_by_task(known, counted)]


def _by_task(known: Sequence[Mapping[str, Any]], named: Iterable[str]) -> list[str]:
    """What differs in knobs and data files."""
    found = []
    for task in named:
        sharing = [entry for entry in known if task in entry["tasks"]]
        if not _agree(entry["tasks"][task] for entry in sharing):
            found.append(f"the settings of {task}")
        if not _agree(entry["files"].get(task) for entry in sharing):
            found.append(f"the data file of {task}")
    return found


def _needing(need: str) -> Set[str]:
    return {name for name, kind in tasks().items() if need in kind.needs}


def _agree(values: Iterable[Any]) -> bool:
    """Whether all that is known of them, part for part, is equal."""
    parts = [value if isinstance(value, list) else [value] for value in values]
    told = [[part for part in column if part is not None] for column in zip(*parts, strict=True)]
    return all(part == column[0] for column in told for part in column)
