"""Whether the longest text of an evaluation can be read here, said before a weight is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from giraffe_cli.errors import DoesNotFit
from giraffe_cli.plan.inference_memory import Demand
from giraffe_cli.plan.machine import Machine, this_machine
from giraffe_cli.units import format_bytes
from giraffe_cli.weights import sizes_of


def check_room(
    model: Path, dtype: str, tokens: int, processes: int = 1, machine: Machine | None = None
) -> None:
    """Keys and values of so many `tokens` lie beside the weights in each of the `processes`, which
    share a host's memory and have a GPU each.

    Raises:
        DoesNotFit: they do not, as predicted (`plan/inference_memory.py`).
    """
    machine = machine or this_machine()
    if machine.kind == "cpu":
        machine = replace(machine, memory_bytes=machine.memory_bytes // processes)
    kept = Demand(sizes_of(model), dtype, tokens, 0, machine).caches()[0]
    if kept["fits"]:
        return
    parts, longest = kept["bytes"], kept["longest_prompt"]
    each = f" in each of {processes} processes" if processes > 1 else ""
    fewer = ", or fewer processes" if processes > 1 and machine.kind == "cpu" else ""
    raise DoesNotFit(
        f"to read {tokens:,} tokens, {model} needs {format_bytes(parts['total'])}{each} "
        f"(predicted), {format_bytes(parts['weights'])} for weights and "
        f"{format_bytes(parts['kv'])} for keys and values in {dtype}; there are "
        f"{format_bytes(machine.usable_bytes)}",
        f"evaluate lengths (--lengths, eval.lengths) up to {longest:,}, which fit{fewer}"
        if longest
        else f"free memory, or take a larger machine{fewer}: no length fits beside the model",
    )
