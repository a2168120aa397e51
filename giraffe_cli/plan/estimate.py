"""A plan: what a run needs, by part, the ladder, the rung it will take, and how long that takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.building import resolve_dtype
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.ladder import Rung, first_that_fits, ladder, make_rung, pinned_bytes
from giraffe_cli.plan.machine import CPU_CORES, DEVICES, Machine, this_machine
from giraffe_cli.plan.operations import Rates, step_per_token
from giraffe_cli.plan.processes import (
    bytes_per_process,
    processes_of,
    processes_of_base,
)
from giraffe_cli.plan.proposals import proposals
from giraffe_cli.plan.settings import allows
from giraffe_cli.units import format_bytes, format_length


@dataclass(frozen=True)
class Pace:
    """Rates, and where they come from."""

    rates: Rates
    is_measured: bool
    source: str
    """A sentence's worth: `measured by a trial step`, or the assumption."""


def assumed_pace(machine: Machine, dtype: str) -> Pace:
    """What is assumed of a machine that nobody has measured, where it computes in `dtype`."""
    if machine.threads:
        rates = DEVICES["cpu"].rates.of_share(machine.threads / CPU_CORES)
        return Pace(rates, False, f"estimate: threads here: {machine.threads}, as cores of AVX2")
    name = machine.name or ("cpu" if machine.kind == "cpu" else "a100")
    device = DEVICES[name]
    told, rates = f"estimate: {name}, {device.assumption}", device.rates
    if dtype == "float32" and device.float32_share < 1:
        rates = rates.of_share(device.float32_share)
        told += f"; float32 at {100 * device.float32_share:.3g} % of that"
    return Pace(rates, False, told)


def demand_of(
    shape: Checkpoint, config: ExtendConfig, machine: Machine, attention_share: float = 1.0
) -> Demand:
    """What one process of `config` holds on `machine`; windows full, of one document unless
    `attention_share` says otherwise."""
    return Demand(
        shape,
        config.train,
        resolve_dtype(config.dtype, shape.dtype, machine.has_bfloat16),
        config.window,
        machine.kind,
        machine.keeps_freed,
        attention_share,
        processes_of_base(config.train, machine),
    )


def estimate(
    shape: Checkpoint,
    config: ExtendConfig,
    machine: Machine | None = None,
    pace: Pace | None = None,
    kept: Levers | None = None,
    attention_share: float = 1.0,
) -> dict[str, Any]:
    """The plan as JSON. `levers` and `bytes` (of one process) are of the rung that will be taken:
    the fastest that fits, or the smallest if none does (`fits` is false then), or the setting
    `kept` from an earlier call of the same run.

    Raises:
        InvalidInput: a lever that has no effect on this kind of machine.
    """
    machine = machine or this_machine()
    demand = demand_of(shape, config, machine, attention_share)
    pace = pace or assumed_pace(machine, demand.dtype)
    rungs = ladder(demand, machine, pace.rates)
    chosen = first_that_fits(rungs, machine, config.train)
    is_kept = kept is not None and allows(config.train, kept, shape.num_layers)
    rung = chosen or min(rungs, key=lambda one: one.total)
    if kept is not None and is_kept:
        rung = make_rung(demand, machine, pace.rates, kept)
    tokens_per_step = config.window * config.train.windows_per_step
    per_token = step_per_token(shape, config.train, config.window, rung.levers, attention_share)
    flops_per_step = tokens_per_step * per_token.total
    return {
        "window": config.window,
        "dtype": demand.dtype,
        "bytes": rung.bytes,
        "pinned_bytes": int(pinned_bytes(demand, machine, rung.levers)),
        "processes": processes_of(config.train, machine),
        "usable_bytes": bytes_per_process(machine, config.train),
        "fits": chosen is not None or is_kept,
        "levers": rung.levers.to_json(),
        "ladder": [_to_json(one, rung, machine, config) for one in _with_chosen(rungs, rung)],
        "proposals": proposals(demand, machine, pace.rates),
        "shorter_target": None if chosen else shorter_target(demand, config, machine, pace.rates),
        "steps": config.train.steps,
        "attention_share": attention_share,
        "tokens_per_step": tokens_per_step,
        "trained_tokens": tokens_per_step * config.train.steps,
        "flops_per_step": flops_per_step,
        "flops": flops_per_step * config.train.steps,
        "seconds_per_step": rung.seconds_per_step,
        "tokens_per_second": tokens_per_step / rung.seconds_per_step,
        "seconds": rung.seconds_per_step * config.train.steps,
        "pace": asdict(pace),
        "machine": asdict(machine),
    }


def shorter_target(
    demand: Demand, config: ExtendConfig, machine: Machine, rates: Rates
) -> int | None:
    """Half the target, or half of that and so on, of which a setting fits in full windows; None
    where there is none beyond the base's own reach, or windows are given by themselves."""
    length = config.target_length // 2
    while config.train.window is None and length > demand.shape.reach:
        rungs = ladder(dataclasses.replace(demand, window=length), machine, rates)
        if first_that_fits(rungs, machine, config.train):
            return length
        length //= 2
    return None


def check_fits(estimated: dict[str, Any]) -> None:
    """Refuse a run that cannot be held.

    Raises:
        DoesNotFit: no rung of the ladder fits; the smallest need and what would fit are named.
    """
    if estimated["fits"]:
        return
    machine, parts = Machine(**estimated["machine"]), dict(estimated["bytes"])
    total = parts.pop("total")
    largest = max(parts, key=lambda name: parts[name])
    count = estimated["processes"]
    shared = f", {count} processes" if count > 1 else ""
    raise DoesNotFit(
        f"training needs at least {format_bytes(total)} (predicted{shared}), {machine.label} has "
        f"{format_bytes(machine.memory_bytes)}, {format_bytes(estimated['usable_bytes'])} for "
        f"each after a margin; the largest part is {largest} with {format_bytes(parts[largest])}",
        _what_would_fit(estimated),
    )


def _what_would_fit(estimated: dict[str, Any]) -> str:
    found = [
        f"{one['what']}: {one['how']} ({format_bytes(one['bytes'])})"
        for one in estimated["proposals"]
        if one["fits"]
    ]
    parts = estimated["bytes"]
    without_heap = parts["total"] - parts.get("heap", 0)
    if estimated["machine"]["keeps_freed"] and without_heap <= estimated["usable_bytes"]:
        found.append("hand freed memory back: MALLOC_MMAP_THRESHOLD_=1048576 (28 % slower)")
    if estimated["shorter_target"]:
        shorter = format_length(estimated["shorter_target"])
        found.append(f"choose a shorter target, such as {shorter}")
    return "; ".join([*found, "choose a smaller model"])


def _with_chosen(rungs: Sequence[Rung], chosen: Rung) -> list[Rung]:
    """The ladder, with a setting that was kept and is no rung of it."""
    if any(rung.levers == chosen.levers for rung in rungs):
        return list(rungs)
    return sorted([*rungs, chosen], key=lambda rung: -rung.total)


def _to_json(rung: Rung, chosen: Rung, machine: Machine, config: ExtendConfig) -> dict[str, Any]:
    return {
        "name": rung.levers.sentence,
        "levers": rung.levers.to_json(),
        "bytes": rung.total,
        "seconds_per_step": rung.seconds_per_step,
        "fits": rung.total <= bytes_per_process(machine, config.train),
        "taken": rung.levers == chosen.levers,
    }
