"""One of several training processes, started by torch's launcher: `worker.py request.json`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from giraffe_cli.progress import Reporter
from giraffe_cli.train.determinism import repeatable
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.loop import train
from giraffe_cli.train.process import run_worker


def work(request: dict[str, Any], reporter: Reporter, stop: Path) -> None:
    """Train this process's share."""
    job = TrainJob.from_json(request)
    with repeatable(job.config.deterministic):
        train(job, reporter, stop)


if __name__ == "__main__":
    sys.exit(run_worker(work))
