"""How many processes train on a machine, and how much of its memory each may take."""

from __future__ import annotations

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.plan.machine import Machine


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


def base_nodes(train: TrainConfig) -> int:
    """Over how many machines a base that is shared out is spread."""
    return train.nodes if train.shard_base == "nodes" else 1


def processes_of_base(train: TrainConfig, machine: Machine) -> int:
    """How many processes share a base out, or can."""
    return processes_per_node(train, machine) * base_nodes(train)


def bytes_per_process(machine: Machine, train: TrainConfig) -> int:
    """What one process may take: a device, or its share of it or of the host."""
    here = processes_per_node(train, machine)
    sharing = here if machine.kind == "cpu" else 1
    if train.share_devices and machine.kind == "cuda":
        sharing = -(-here // machine.devices)
    return machine.usable_bytes // sharing
