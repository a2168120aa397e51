"""Whether two folders hold the same result, and what of it a process left unfinished.

Clocks, process numbers and the report's times are no part of a result; everything else is compared
byte by byte, JSON that holds a time without it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

TIMES = {"seconds", "tokens_per_second", "peak_memory_bytes", "giraffe_seal", "command"}
WITH_TIMES = {"results.json", "training.json", "metrics.jsonl", "report.json"}
NO_RESULT = {"timings.json", "plan.json", "verify.json", "report.html", "README.md", "levers.json"}
PARTIAL = (".partial", ".giraffe-building")


def result_of(folder: Path, *names: str) -> dict[str, str]:
    """Path → digest of every file below `names` that is part of a result."""
    found: dict[str, str] = {}
    for name in names:
        top = folder / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top] * top.exists():
            relative = path.relative_to(folder)
            if path.is_file() and not _is_beside(relative):
                found[str(relative)] = _digest(path)
    return found


def difference(expected: dict[str, str], found: dict[str, str]) -> str:
    """Empty when equal; else the first names that differ."""
    names = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
    return f"differs: {', '.join(names[:5])}" if names else ""


def unfinished(folder: Path) -> list[str]:
    """What on the disk is not finished: temporary files, stages without a manifest."""
    found = [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith(PARTIAL) or path.name == ".work"
    ]
    stages = [*folder.glob("*/checkpoints/step-*"), *folder.glob("*/adapter")]
    stages += folder.glob("*/packed")
    found += [str(s.relative_to(folder)) for s in stages if not (s / "manifest.json").exists()]
    return found


def broken_stages(folder: Path) -> str:
    """A folder that counts as finished and is not what its manifest says: must never be."""
    from giraffe_cli.errors import GiraffeError
    from giraffe_cli.rundir import MANIFEST, check_whole

    for path in folder.rglob(MANIFEST):
        try:
            check_whole(path.parent)
        except GiraffeError as error:
            return error.message
    return ""


def _is_beside(path: Path) -> bool:
    parts = set(path.parts)
    return bool(
        path.name in NO_RESULT
        or path.suffix in (".png", ".svg")
        or parts & {"checkpoints", "cache", "base"}
        or path.name.endswith("giraffe-lock")
        or (path.name == "manifest.json" and "model" not in parts)
    )


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name in WITH_TIMES:
        lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
        data = json.dumps([_timeless(json.loads(line)) for line in lines]).encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k not in TIMES}
    if isinstance(value, list):
        return [_timeless(entry) for entry in value]
    return value
