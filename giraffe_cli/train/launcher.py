"""torch's launcher as a child: its command, its environment, and its end.

Launcher and workers ignore the signals that stop a run, which travel as a file; a parent that dies
closes the pipe that the workers inherited as stdin, and they end at once (`train/process.py`).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import torch

from giraffe_cli.train.signals import ignored_by_children

GRACE = 20.0
"""Seconds that workers have to end by themselves once those of another machine have."""


def launcher_command(
    places: Sequence[str], processes: int, worker: str, request: Path
) -> list[str]:
    """Of `processes` workers on this machine; `places` says where they stand among others."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", *places),
        *("--signals-to-handle", "SIGQUIT"),
        *("--nproc-per-node", str(processes), "-m", worker, str(request.absolute())),
    ]


def run_launcher(
    command: Sequence[str],
    log: Path,
    processes: int,
    environment: Mapping[str, str],
    hear: Callable[[IO[str]], None] | None = None,
    is_over: Callable[[], bool] | None = None,
) -> int:
    """Run `command` until it ends; its exit code. `hear` reads what the workers write, and
    `is_over` tells that those of other machines have ended: then these have `GRACE` left."""
    with open(log, "wb") as writing, ignored_by_children():
        process = subprocess.Popen(
            command,
            env={**_environment(processes), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if hear else subprocess.DEVNULL,
            stderr=writing,
            start_new_session=True,  # Ctrl-C reaches the workers as a stop file
            text=True,
        )
    # leaving the block closes the workers' stdin, at which any that still run end
    with process, _ended_with_others(process, is_over):
        threading.Thread(target=_end_workers_after, args=(process,), daemon=True).start()
        if hear:
            assert process.stdout is not None
            hear(process.stdout)
        return process.wait()


def _end_workers_after(process: subprocess.Popen[str]) -> None:
    """A launcher that is killed leaves workers that would train on, unheard."""
    process.wait()
    if process.stdin:
        process.stdin.close()


@contextlib.contextmanager
def _ended_with_others(
    process: subprocess.Popen[str], is_over: Callable[[], bool] | None
) -> Iterator[None]:
    """Within the block, `process` loses its stdin `GRACE` after `is_over`, at which its workers
    end; a launcher that has none yet, because it waits for others, is killed as long after that."""
    if is_over is None:
        yield
        return
    left = threading.Event()

    def watch() -> None:
        while not left.wait(1.0):
            if not is_over():
                continue
            if not left.wait(GRACE) and process.stdin:
                process.stdin.close()
            if not left.wait(GRACE):
                process.kill()
            return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        left.set()
        watching.join()


def _environment(processes: int) -> dict[str, str]:
    """This environment, with torch's threads shared out and this very package importable."""
    here = str(Path(__file__).parents[2])
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
    }
