"""Seconds of a training step: its operations, and what it waits for that is copied meanwhile."""

from __future__ import annotations

from giraffe_cli.model.levers import Levers, Offload
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import away_bytes, gathered_bytes, sharded_numbers
from giraffe_cli.plan.operations import Rates, short_contexts, short_passes, step_per_token
from giraffe_cli.plan.processes import base_nodes, processes_of

BYTES_PER_SECOND = {"disk": 1e9, "host": 45e9}
"""A disk's cached file (assumed), and pinned memory over PCIe 5 x16, each way."""
GATHERED_PER_SECOND = {"cpu": 1e9, "cuda": 50e9}
"""Bytes of other processes' parts of the base that reach one of them. Assumed: gloo on one machine,
and PCIe 5 x16, or a network of 400 Gbit/s to each GPU; NVLink brings several times as many."""
UNHIDDEN = 0.1
"""Of a copy to host memory and back that is hidden otherwise: the first and the last layer's, and
the memory's bandwidth that it takes from the computation."""


def step_seconds(demand: Demand, machine: Machine, rates: Rates, levers: Levers) -> float:
    """Of a step, over all processes."""
    train = demand.train
    tokens = demand.window * train.windows_per_step
    operations = step_per_token(demand.shape, train, demand.window, levers, demand.attention_share)
    devices = processes_of(train, machine) if machine.kind == "cuda" else 1
    if train.share_devices and machine.kind == "cuda":
        devices = min(devices, machine.devices * train.nodes)
    if demand.attention_share < 1 or train.sequence_parallel_by == "keys":
        rates = rates.of_documents()
    short = short_contexts(demand.shape, train, demand.window, demand.attention_share).attention
    by_documents = short / rates.of_documents().attention - short / rates.attention
    seconds = (operations.seconds(rates) + by_documents) * tokens / devices
    if levers.offload != "none":
        away = away_bytes(demand, levers) * train.windows_per_step / devices
        seconds += _waiting(away, levers.offload, seconds)
    if levers.shard_base:
        seconds += _gathering(demand, seconds)
    return seconds


def _gathering(demand: Demand, computing: float) -> float:
    """Seconds of a step that processes wait for each other's parts of the base: a layer comes once
    a pass over a window and once back, while the one before is computed; where all weights are
    trained, its gradients go in float32."""
    units = sharded_numbers(demand)
    is_full, layers = demand.train.method == "full", demand.shape.num_layers
    forward = 1 + short_passes(demand.train)
    sent = gathered_bytes(demand)
    of_layers = (forward + 1) * sum(sent[:layers])
    of_ends = forward * (4 * sum(units[layers:]) if is_full else sum(sent[layers:]))
    bytes_of_all = of_layers + of_ends + (4 * sum(units) if is_full else 0)
    others = bytes_of_all * (demand.processes - 1) / demand.processes
    share = demand.train.sequence_parallel
    others_nodes = demand.train.nodes // base_nodes(demand.train)
    passes = demand.train.windows_per_step * share / (demand.processes * others_nodes)
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
