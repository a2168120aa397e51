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


def machine_of(
    device: str | None, memory: str | None, gpus: int | None, host_memory: str | None = None
) -> Machine:
    """The machine that is named, else this one, with the memory that is given.

    Raises:
        UsageError: GPUs of a CPU, host memory beside none, or a memory that no machine has.
    """
    from giraffe_cli.plan.machine import DEVICES, named_machine, this_machine

    size = _memory("--device-memory", memory)
    if device is None and gpus is None:
        machine = this_machine()
        machine = dataclasses.replace(machine, memory_bytes=size or machine.memory_bytes)
    else:
        name = device or ASSUMED_GPU
        if gpus is not None and DEVICES[name].kind == "cpu":
            raise UsageError("--gpus and --device cpu", "leave one out")
        machine = named_machine(name, gpus or 1, size)
    if host_memory is None:
        return machine
    if machine.kind == "cpu":
        raise UsageError("--host-memory of a CPU, whose memory it is", "pass --device-memory")
    return dataclasses.replace(machine, host_bytes=_memory("--host-memory", host_memory))


def _memory(option: str, given: str | None) -> int | None:
    if given is None:
        return None
    size = parse_bytes(given)
    if size < LEAST_MEMORY:
        meant = f"{size}GB" if size < 1000 else "80GB, or 600MB"
        raise UsageError(f"{option} {given}: {size:,} bytes", f"write {meant}")
    return size


def tell_assumed(
    device: str | None, memory: str | None, gpus: int | None, console: Console
) -> None:
    """Whose speeds a plan takes where memory or GPUs are given and no device is."""
    if device is None and gpus is not None:
        console.info(f"speeds: {ASSUMED_GPU} assumed, pass --device")
    elif device is None and memory is not None:
        console.info("speeds: those of this machine, pass --device for another's")
