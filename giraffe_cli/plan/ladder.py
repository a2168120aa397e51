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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import DoesNotFit, InvalidInput
from giraffe_cli.model.levers import Levers, Offload
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import away_bytes, bytes_by_part, sharded_numbers
from giraffe_cli.plan.operations import Rates, step_per_token
from giraffe_cli.units import format_bytes

CHUNKS = {"cpu": (256, 128), "cuda": (4096, 2048, 1024, 512, 256, 128)}
"""Tokens whose logits exist at a time, when the choice is left; on a CPU more are not faster."""
TILES = {"cpu": 1024, "cuda": 4096}
"""Tokens of an MLP tile, when the choice is left; tiles of this size take no time (`Levers`)."""
HEAD_GROUPS = {"cpu": 1, "cuda": 4}
"""At the most, when the choice is left: a CPU's threads share the heads out, and of a GPU's memory
what a group needs is a tenth of a layer's by then."""
OFFLOAD: dict[str, Offload] = {"cpu": "disk", "cuda": "host"}
BYTES_PER_SECOND = {"disk": 1e9, "host": 45e9}
"""A disk's cached file (assumed), and pinned memory over PCIe 5 x16, each way."""
GATHERED_PER_SECOND = {"cpu": 1e9, "cuda": 50e9}
"""Bytes of other processes' parts of the base that reach one of them. Assumed: gloo on one machine,
and PCIe 5 x16; NVLink brings several times as many."""
UNHIDDEN = 0.1
"""Of a copy to host memory and back that is hidden otherwise: the first and the last layer's, and
the memory's bandwidth that it takes from the computation."""
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
    demand = replace(demand, processes=processes_per_node(demand.train, machine))
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
    return _pinned(demand, machine, levers) <= HOST_SHARE * machine.host_bytes


def _pinned(demand: Demand, machine: Machine, levers: Levers) -> float:
    """Bytes of host memory that the processes of one machine pin."""
    processes = min(processes_per_node(demand.train, machine), machine.devices)
    return away_bytes(demand, levers) * processes


def _does_not_fit_the_host(demand: Demand, machine: Machine) -> DoesNotFit:
    least = min(_pinned(demand, machine, levers) for levers in settings(demand))
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


def processes_of(train: TrainConfig, machine: Machine) -> int:
    """How many processes train on all nodes, as `train/parallel.py` chooses them."""
    if train.processes is not None:
        return train.processes
    share = train.sequence_parallel
    devices = machine.devices * train.nodes
    groups = max(1, devices // share) if machine.kind == "cuda" else 1
    return share * max(n for n in range(1, groups + 1) if train.windows_per_step % n == 0)


def processes_per_node(train: TrainConfig, machine: Machine) -> int:
    """How many of them on each machine."""
    return max(1, processes_of(train, machine) // train.nodes)


def bytes_per_process(machine: Machine, train: TrainConfig) -> int:
    """What one process may take: a device, or its share of it or of the host."""
    here = processes_per_node(train, machine)
    sharing = here if machine.kind == "cpu" else 1
    if train.share_devices and machine.kind == "cuda":
        sharing = -(-here // machine.devices)
    return machine.usable_bytes // sharing


def make_rung(demand: Demand, machine: Machine, rates: Rates, levers: Levers) -> Rung:
    """`levers` with what they cost."""
    return Rung(levers, bytes_by_part(demand, levers), _seconds(demand, machine, rates, levers))


def settings(demand: Demand) -> Iterator[Levers]:
    """Every setting that the config allows, the loss chunk still open where it is left.

    Raises:
        InvalidInput: offload to host memory on a CPU, or a base for one process to share out.
    """
    train, kind = demand.train, demand.kind
    if train.shard_base == "full" and demand.processes == 1:
        raise InvalidInput(
            "train.shard_base: full has no effect on one process",
            "--gpus N, with as many GPUs, or leave it to auto",
        )
    if train.offload == "host" and kind == "cpu":
        raise InvalidInput(
            "train.offload: host has no effect on a CPU, whose memory is the host's",
            "--set train.offload=disk, or leave it to auto",
        )
    choices = _choices(demand)
    for values in itertools.product(*choices.values()):
        levers = Levers(**dict(zip(choices, values, strict=True)), fused=_is_fused(demand))
        if _has_effect(levers) and (train.whole_layers != "auto" or _is_roomy(levers)):
            groups = head_groups(demand) if levers.projection_tile else 1
            yield replace(levers, head_groups=groups)


def _has_effect(levers: Levers) -> bool:
    """Whether each lever changes something beside the others."""
    if levers.checkpointing == "none":
        tiles = levers.mlp_tile or levers.projection_tile
        counts = levers.offload_layers or levers.attention_layers or levers.whole_layers
        return levers.offload == "none" and not (tiles or counts or levers.shard_base)
    return (
        (levers.offload != "none" or levers.offload_layers == 0)
        and (levers.checkpointing == "attention" or levers.attention_layers == 0)
        and not (levers.shard_base and levers.whole_layers)
    )


def _is_roomy(levers: Levers) -> bool:
    """Whether layers are kept whole only while nothing slower makes room: a layer that is
    recomputed makes more of it than one whose attention is computed twice, or that is offloaded."""
    keeps = levers.checkpointing == "attention" and levers.attention_layers == 0
    return not levers.whole_layers or (keeps and levers.offload == "none")


def with_chunk(demand: Demand, levers: Levers, budget: int) -> Levers:
    """The largest loss chunk that the memory left over holds, where the config leaves it."""
    if demand.train.loss_chunk != "auto":
        return levers
    tried = [replace(levers, loss_chunk=chunk) for chunk in CHUNKS[demand.kind]]
    fitting = (one for one in tried if bytes_by_part(demand, one)["total"] <= budget)
    return next(fitting, tried[-1])


def allows(train: TrainConfig, levers: Levers) -> bool:
    """Whether `levers` are a setting that `train` leaves open."""
    asked: dict[str, Any] = {
        "checkpointing": train.checkpointing,
        "offload": train.offload,
        "mlp_tile": 0 if train.mlp_tile == "none" else train.mlp_tile,
        "projection_tile": 0 if train.projection_tile == "none" else train.projection_tile,
        "head_groups": train.head_groups,
        "whole_layers": train.whole_layers,
        "loss_chunk": train.loss_chunk,
        "offload_layers": train.offload_layers,
        "attention_layers": train.attention_layers,
        "fused": {"on": True, "off": False}.get(train.fused_layers, "auto"),
        "shard_base": {"full": True, "none": False}.get(train.shard_base, "auto"),
    }
    return all(value in ("auto", getattr(levers, name)) for name, value in asked.items())


def head_groups(demand: Demand) -> int:
    """Into how many groups heads are divided, where projections go by tiles.

    Raises:
        InvalidInput: as many as were asked for do not divide the key heads.
    """
    keys, asked = demand.shape.num_key_value_heads, demand.train.head_groups
    if asked == "auto":
        many = HEAD_GROUPS[demand.kind] if demand.train.sequence_parallel == 1 else 1
        return max(count for count in range(1, many + 1) if keys % count == 0)
    if keys % asked:
        raise InvalidInput(
            f"train.head_groups: {asked} do not divide the {keys} key heads there are",
            "--set train.head_groups=auto",
        )
    return asked


def _is_fused(demand: Demand) -> bool:
    """Whether projections are taken together: of adapters over plain weights; what else forbids it
    shows when the model is built."""
    train = demand.train
    if train.fused_layers != "auto":
        return train.fused_layers == "on"
    is_plain = train.method == "lora" and train.quantize_base == "none"
    return is_plain and not (train.lora.use_dora or train.lora.dropout)


def _choices(demand: Demand) -> dict[str, list[Any]]:
    """Values to try of each lever, by its name."""
    train, kind = demand.train, demand.kind
    tiles = [0, TILES[kind]] if TILES[kind] < demand.tokens else [0]
    layers = demand.shape.num_layers
    eighths = [*range(max(1, layers // 8), layers, max(1, layers // 8)), 0]
    every = eighths if kind == "cuda" else [0]
    # what has not run on a GPU yet is proposed there, and taken when it is asked for
    on_cpu = kind == "cpu"
    left: dict[str, list[Any]] = {
        "checkpointing": ["none", "attention", "full"],
        "offload": ["none", OFFLOAD[kind]],
        "mlp_tile": tiles,
        "projection_tile": tiles if on_cpu else [0],
        "offload_layers": every,
        "attention_layers": every,
        "whole_layers": eighths if on_cpu else [0],
        "loss_chunk": [CHUNKS[kind][0]],
    }
    asked = {name: getattr(train, name) for name in left}
    values = {
        name: left[name] if value == "auto" else [_bounded(name, value, layers)]
        for name, value in asked.items()
    }
    return {**values, "shard_base": _sharding(demand)}


def _bounded(name: str, value: Any, layers: int) -> Any:
    """What the config asks for, as a lever has it."""
    if name.endswith("_tile") and value == "none":
        return 0
    return min(value, layers) if name.endswith("_layers") else value


def _sharding(demand: Demand) -> list[bool]:
    """Whether processes share the base out, where there are several."""
    train = demand.train
    if train.shard_base != "auto":
        return [train.shard_base == "full"]
    # it has not run on GPUs yet: there it is proposed, and taken when it is asked for
    allowed = train.can_shard_base and demand.processes > 1 and demand.kind == "cpu"
    return [False, True] if allowed else [False]


def _seconds(demand: Demand, machine: Machine, rates: Rates, levers: Levers) -> float:
    """Of a step, over all processes."""
    train = demand.train
    tokens = demand.window * train.windows_per_step
    operations = step_per_token(demand.shape, train, demand.window, levers, demand.attention_share)
    devices = processes_of(train, machine) if machine.kind == "cuda" else 1
    if train.share_devices and machine.kind == "cuda":
        devices = min(devices, machine.devices * train.nodes)
    if demand.attention_share < 1 or train.sequence_parallel_by == "keys":
        rates = rates.of_documents()
    seconds = operations.seconds(rates) * tokens / devices
    if levers.offload != "none":
        away = away_bytes(demand, levers) * train.windows_per_step / devices
        seconds += _waiting(away, levers.offload, seconds)
    if levers.shard_base:
        seconds += _gathering(demand, seconds)
    return seconds


def _gathering(demand: Demand, computing: float) -> float:
    """Seconds of a step that processes wait for each other's parts of the base: a layer comes twice
    a window, while the one before is computed."""
    units = sharded_numbers(demand)
    others = 2 * sum(units) * demand.width * (demand.processes - 1) / demand.processes
    share = demand.train.sequence_parallel
    passes = demand.train.windows_per_step * share / (demand.processes * demand.train.nodes)
    gathered = passes * others / GATHERED_PER_SECOND[demand.kind]
    return max(0.0, gathered - computing) + UNHIDDEN * gathered


def _waiting(away: float, offload: Offload, computing: float) -> float:
    """Seconds of a step in which nothing is computed for the copies' sake: a file is waited for;
    copies to host memory run beside the forward pass, a quarter of a step, and the backward."""
    each_way = away / BYTES_PER_SECOND[offload]
    if offload == "disk":
        return 2 * each_way
    beside = max(0.0, each_way - 0.25 * computing) + max(0.0, each_way - 0.75 * computing)
    return beside + UNHIDDEN * 2 * each_way
