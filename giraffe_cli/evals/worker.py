"""One of several evaluating processes, started by torch's launcher: `worker.py request.json`.

Each reads its part of the plan on its own device and stores the outcomes in files of its own; the
parent makes the results. Request and examples hold what decides an outcome, and no task.
"""

from __future__ import annotations

import base64
import dataclasses
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.order import Entry, reading_plan
from giraffe_cli.evals.parts import launched_part, own_device
from giraffe_cli.evals.reading import chunk_here, read_part
from giraffe_cli.evals.subject import Subject
from giraffe_cli.progress import Reporter
from giraffe_cli.train.process import run_worker

_PLAIN = (
    *("key", "cluster", "length", "num_targets", "max_new_tokens", "stops_when_found"),
    "compared",
)


def request_of(
    subject: Subject, entries: Iterable[Entry], batch_tokens: int, cache: Path
) -> dict[str, Any]:
    """What `work` needs, as JSON."""
    return {
        "subject": {**dataclasses.asdict(subject), "path": str(subject.path.absolute())},
        "entries": [
            {
                "task": task,
                **{name: getattr(example, name) for name in _PLAIN},
                "token_ids": _packed(example.token_ids),
                "answers": example.answers,
                "candidates": example.candidates,
            }
            for task, example in entries
        ],
        "batch_tokens": batch_tokens,
        "cache": str(cache.absolute()),
    }


def work(request: dict[str, Any], reporter: Reporter, stop: Path) -> None:
    """Read this process's part."""
    subject = Subject(**{**request["subject"], "path": Path(request["subject"]["path"])})
    entries = [(entry.pop("task"), _example(entry)) for entry in request["entries"]]
    plan = reading_plan(entries, request["batch_tokens"], chunk_here())
    part = launched_part()
    cache = Path(request["cache"])
    read_part(subject, plan, cache, reporter, part, own_device(), stop)


def _example(entry: dict[str, Any]) -> Example:
    return Example(
        **{name: entry[name] for name in _PLAIN},
        token_ids=_unpacked(entry["token_ids"]),
        answers=tuple(entry["answers"]),
        candidates=tuple(tuple(candidate) for candidate in entry["candidates"]),
    )


def _packed(token_ids: npt.NDArray[np.int32]) -> str:
    return base64.b64encode(zlib.compress(token_ids.astype("<i4").tobytes())).decode()


def _unpacked(text: str) -> npt.NDArray[np.int32]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int32)


if __name__ == "__main__":
    sys.exit(run_worker(work))
