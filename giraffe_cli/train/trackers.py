"""Accelerate's trackers: refused before training where they cannot log, started, kept off stdout.

trackio logs on this machine (unless its own environment variables name a Space or a server), one
run a run folder, which a resumed part continues.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.rundir import digest_value
from giraffe_cli.train.job import TrainJob

PROJECT = "giraffe"


def check_trackers(names: Sequence[str]) -> None:
    """Refuse what cannot log.

    Raises:
        InvalidInput: a tracker that is unknown or not installed.
    """
    for name in names:
        known = {str(kind) for kind in LoggerType} - {"all"}
        if name not in known:
            raise InvalidInput(f"unknown tracker `{name}`", near_misses(name, known))
        if name not in {str(kind) for kind in get_available_trackers()}:
            raise InvalidInput(f"tracker `{name}` is not installed", f"run pip install {name}")


def start_trackers(accelerator: Accelerator, job: TrainJob, is_resumed: bool) -> None:
    """Start the job's trackers and tell them its numbers."""
    folder = job.run_dir.absolute()
    options: dict[str, dict[str, Any]] = {
        "trackio": {
            # stages of several runs share the name of their folders
            "name": f"{folder.name}-{digest_value(str(folder))[:6]}",
            "resume": "allow" if is_resumed else "never",
            "embed": False,
            "auto_log_cpu": False,
        }
    }
    with quiet_stdout():
        accelerator.init_trackers(
            PROJECT,
            config=settings_of(job),
            init_kwargs={name: options[name] for name in job.config.trackers if name in options},
        )


def settings_of(job: TrainJob) -> dict[str, bool | int | float | str]:
    """What tells one run from another, by name: knobs of sections dotted (`lora.rank`), lists as
    text, nothing for what is not set."""
    own = {
        "model": job.checkpoint.source,
        "strategy": job.table.strategy,
        "rope": job.table.knobs,
        "positions": job.positions,
        "dtype": job.dtype,
        "seed": job.seed,
        "target_length": job.target_length,
    }
    return dict(_plain({**job.config.model_dump(), **own, "window": job.window}))


def _plain(
    values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, bool | int | float | str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{key}", value


def log_step(accelerator: Accelerator, values: Mapping[str, float | None]) -> None:
    """Tell the trackers one step; what is no number there is left out."""
    numbers = {k: v for k, v in values.items() if v is not None and k != "step"}
    with quiet_stdout():
        accelerator.log(numbers, step=values["step"])


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """What libraries print goes to stderr: stdout is data."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
