"""Whether the longest text of an evaluation can be read here, said before a weight is."""

from __future__ import annotations

from dataclasses import replace

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.plan.inference_memory import Demand
from giraffe_cli.plan.machine import Machine, this_machine
from giraffe_cli.units import format_bytes, format_length


def check_room(
    checkpoint: Checkpoint,
    dtype: str,
    length: int,
    processes: int = 1,
    option: str = "--lengths",
    machine: Machine | None = None,
) -> None:
    """`length` tokens of keys and values lie beside the weights in each of the `processes`, which
    share a host's memory and have a GPU each. `option` is what chooses the length.

    Raises:
        DoesNotFit: they do not, as predicted (`plan/inference_memory.py`).
    """
    machine = machine or this_machine()
    if machine.kind == "cpu":
        machine = replace(machine, memory_bytes=machine.memory_bytes // processes)
    demand = Demand(checkpoint, dtype, length, 0, machine)
    kept = demand.caches()[0]
    if kept["fits"]:
        return
    parts, longest = kept["bytes"], kept["longest_prompt"]
    each = f" in each of {processes} processes" if processes > 1 else ""
    fewer = ", or fewer processes" if processes > 1 and machine.kind == "cpu" else ""
    raise DoesNotFit(
        f"to read {format_length(length)} tokens, {checkpoint.source} needs "
        f"{format_bytes(parts['total'])}{each} (predicted), {format_bytes(parts['weights'])} for "
        f"weights and {format_bytes(parts['kv'])} for keys and values in {dtype}; there are "
        f"{format_bytes(machine.usable_bytes)}",
        f"{option} up to {longest:,} tokens fit{fewer}"
        if longest
        else f"a larger machine{fewer}: the weights do not fit",
    )
