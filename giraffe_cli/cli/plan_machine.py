"""The machine that a plan is for: the one that is named, else this one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import UsageError
from giraffe_cli.units import parse_bytes

if TYPE_CHECKING:
    from giraffe_cli.plan.machine import Machine

ASSUMED_GPU = "h100"
LEAST_MEMORY = 100 * 10**6
"""Bytes: an interpreter with torch takes more, so that a smaller `--device-memory` is a slip."""


def machine_of(device: str | None, memory: str | None, gpus: int | None) -> Machine:
    """The machine that is named, else this one, with the memory that is given.

    Raises:
        UsageError: GPUs of a CPU, or a memory that no device has.
    """
    from giraffe_cli.plan.machine import DEVICES, named_machine, this_machine

    size = _memory(memory) if memory is not None else None
    if device is None and gpus is None:
        here = this_machine()
        return dataclasses.replace(here, memory_bytes=size) if size is not None else here
    name = device or ASSUMED_GPU
    if gpus is not None and DEVICES[name].kind == "cpu":
        raise UsageError("--gpus and --device cpu", "leave one out")
    return named_machine(name, gpus or 1, size)


def _memory(given: str) -> int:
    size = parse_bytes(given)
    if size < LEAST_MEMORY:
        meant = f"{size}GB" if size < 1000 else "80GB, or 600MB"
        raise UsageError(f"--device-memory {given}: {size:,} bytes", f"write {meant}")
    return size


def tell_assumed(
    device: str | None, memory: str | None, gpus: int | None, console: Console
) -> None:
    """Whose speeds a plan takes where memory or GPUs are given and no device is."""
    if device is None and gpus is not None:
        console.info(f"speeds: {ASSUMED_GPU} assumed, pass --device")
    elif device is None and memory is not None:
        console.info("speeds: those of this machine, pass --device for another's")
