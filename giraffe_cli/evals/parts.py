"""Which part of an evaluation this process takes, where a launcher started several.

`giraffe eval --processes N` starts workers of its own; under `accelerate launch -m giraffe_cli
eval ...` the command itself runs once a process, and the first one writes the results.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=7)
"""How long a process waits for the others; torch's own half an hour is less than one share."""


@dataclass(frozen=True)
class Part:
    """Which of several processes this one is."""

    process: int = 0
    processes: int = 1


LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher tells its processes in the environment."""


def launched_part() -> Part:
    """As torch's launcher, or Accelerate's, says in the environment; alone without one, or where
    what it says cannot be: a batch system's leftovers are no launcher."""
    rank, processes = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    is_said = rank.isdecimal() and processes.isdecimal() and "MASTER_ADDR" in os.environ
    if not is_said or not int(rank) < int(processes):
        return Part()
    return Part(int(rank), int(processes))


def leave_launcher() -> list[str]:
    """Forget what a launcher, or a batch system, told this process; the variables' names."""
    found = [name for name in LAUNCHERS if name in os.environ]
    for name in found:
        del os.environ[name]
    return found


def own_device() -> torch.device:
    """The device that Accelerate gives this process: one GPU each, or the CPU."""
    device: torch.device = _state().device
    return device


def wait_for_all() -> None:
    """Until every process of the launcher has come here."""
    if launched_part().processes > 1:
        _state().wait_for_everyone()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the block, then all others: for what is written once for all."""
    if launched_part().processes == 1:
        yield
        return
    with _state().main_process_first():
        yield


def _state() -> Any:
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
