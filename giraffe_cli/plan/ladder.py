"""The ladder of levers: settings from the fastest to the smallest, and the one that is pulled.

    rungs = ladder(demand, machine, pace)     # fastest first, each smaller than all before it
    rung = first_that_fits(rungs, machine)    # or None

A rung is a full setting of the levers with its predicted peak and time. What the config sets stays
as set; what it leaves (`auto`) is tried in every value, and a setting that is slower without being
smaller is no rung. None of these changes what is learnt; what does is proposed by
`plan/proposals.py` and never pulled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import away_bytes, bytes_by_part
from giraffe_cli.plan.operations import Rates
from giraffe_cli.plan.processes import bytes_per_process, processes_of_base, processes_per_node
from giraffe_cli.plan.settings import CHUNKS, settings
from giraffe_cli.plan.step_time import step_seconds
from giraffe_cli.units import format_bytes

HOST_SHARE = 0.8
"""Of the free host memory that may be pinned."""


@dataclass(frozen=True)
class Rung:
    """A setting of the levers, and what it is predicted to cost."""

    levers: Levers
    bytes: dict[str, int]
    """Of one process, by part, with their `total`."""
    seconds_per_step: float

    @property
    def total(self) -> int:
        """Bytes of one process."""
        return self.bytes["total"]


def ladder(demand: Demand, machine: Machine, rates: Rates) -> list[Rung]:
    """Fastest first; at least one.

    Raises:
        InvalidInput: a setting that has no effect on this kind of machine.
        DoesNotFit: offload that was asked for, and host memory holds it with no number of layers.
    """
    budget = bytes_per_process(machine, demand.train)
    demand = replace(demand, processes=processes_of_base(demand.train, machine))
    rungs = [
        make_rung(demand, machine, rates, with_chunk(demand, levers, budget))
        for levers in settings(demand)
        if _host_holds(demand, machine, levers)
    ]
    if not rungs:
        raise _does_not_fit_the_host(demand, machine)
    rungs.sort(key=lambda rung: (rung.seconds_per_step, rung.total))
    smallest = list(itertools.accumulate((rung.total for rung in rungs), min))
    return [r for n, r in enumerate(rungs) if n == 0 or r.total < smallest[n - 1]]


def _host_holds(demand: Demand, machine: Machine, levers: Levers) -> bool:
    """Whether what waits in host memory finds room there, for all processes of the machine."""
    if levers.offload != "host" or machine.host_bytes is None:
        return True
    return pinned_bytes(demand, machine, levers) <= HOST_SHARE * machine.host_bytes


def pinned_bytes(demand: Demand, machine: Machine, levers: Levers) -> float:
    """Bytes of host memory that the processes of one machine pin."""
    if levers.offload != "host":
        return 0.0
    processes = min(processes_per_node(demand.train, machine), machine.devices)
    return away_bytes(demand, levers) * processes


def _does_not_fit_the_host(demand: Demand, machine: Machine) -> DoesNotFit:
    least = min(pinned_bytes(demand, machine, levers) for levers in settings(demand))
    host = machine.host_bytes or 0
    return DoesNotFit(
        f"train.offload: host pins at least {format_bytes(least)} of host memory, "
        f"{format_bytes(host)} are free and {HOST_SHARE:.0%} of them may be pinned",
        "--set train.offload=auto, fewer train.offload_layers, or a shorter --window",
    )


def first_that_fits(rungs: Sequence[Rung], machine: Machine, train: TrainConfig) -> Rung | None:
    """The fastest rung within the memory that a plan may use."""
    budget = bytes_per_process(machine, train)
    return next((rung for rung in rungs if rung.total <= budget), None)


def next_down(rungs: Sequence[Rung], levers: Levers) -> Rung | None:
    """The first rung that is predicted to need less than `levers` do, or None."""
    of_now = [rung.total for rung in rungs if rung.levers == levers]
    if not of_now:
        return None
    return next((rung for rung in rungs if rung.total < of_now[0]), None)


def make_rung(demand: Demand, machine: Machine, rates: Rates, levers: Levers) -> Rung:
    """`levers` with what they cost."""
    return Rung(levers, bytes_by_part(demand, levers), step_seconds(demand, machine, rates, levers))


def with_chunk(demand: Demand, levers: Levers, budget: int) -> Levers:
    """The largest loss chunk that the memory left over holds, where the config leaves it."""
    if demand.train.loss_chunk != "auto":
        return levers
    tried = [replace(levers, loss_chunk=chunk) for chunk in CHUNKS[demand.kind]]
    fitting = (one for one in tried if bytes_by_part(demand, one)["total"] <= budget)
    return next(fitting, tried[-1])
