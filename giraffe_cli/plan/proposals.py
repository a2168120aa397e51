"""What would make a training fit that changes its outcome or needs other hardware: only proposed.

NF4 rounds the base, a shorter window trains positions by PoSE, fewer trained numbers learn less;
sequence parallelism wants more devices. Each comes with the smallest peak predicted under it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.plan.ladder import bytes_per_process, ladder
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.memory import Demand
from giraffe_cli.plan.operations import Rates
from giraffe_cli.units import format_length

SHORT_WINDOW = 2048


def proposals(demand: Demand, machine: Machine, rates: Rates) -> list[dict[str, Any]]:
    """Each with `what`, `how` (options to pass), `bytes` (smallest predicted peak) and `fits`."""
    found = []
    for what, how, changed, on in _changes(demand, machine):
        smallest = min(rung.total for rung in ladder(changed, on, rates))
        fits = smallest <= bytes_per_process(on, changed.train)
        found.append({"what": what, "how": how, "bytes": smallest, "fits": fits})
    return found


def _changes(demand: Demand, machine: Machine) -> Iterator[tuple[str, str, Demand, Machine]]:
    train = demand.train
    if train.method == "full":
        yield (
            "train an adapter instead of every weight",
            "--set train.method=lora",
            _with(demand, method="lora"),
            machine,
        )
        if train.optimizer == "adamw":
            how = "--set train.optimizer=adamw8bit"
            yield "moments in 8 bits", how, _with(demand, optimizer="adamw8bit"), machine
    elif train.quantize_base == "none":
        whole = " --set train.shard_base=none" if train.shard_base == "full" else ""
        how = f"--set train.quantize_base=nf4{whole}"
        changed = _with(demand, quantize_base="nf4", shard_base="none")
        yield "hold the base in 4 bits (NF4)", how, changed, machine
    if demand.processes > 1 and train.shard_base == "auto" and train.can_shard_base:
        how = "--set train.shard_base=full"
        yield (
            "share the base out over the processes",
            how,
            _with(demand, shard_base="full"),
            machine,
        )
    if demand.dtype == "float32":
        changed = dataclasses.replace(demand, dtype="bfloat16")
        yield "halve weights and activations", "--set dtype=bfloat16", changed, machine
    if demand.window > SHORT_WINDOW:
        changed = dataclasses.replace(demand, window=SHORT_WINDOW)
        how = f"--window {format_length(SHORT_WINDOW)}"
        yield "train shorter windows with PoSE", how, changed, machine
    heads = demand.shape.num_attention_heads
    for share in (2, 4, 8):
        fits_nodes = share % train.nodes == 0 and (
            train.shard_base != "full" or share > train.nodes
        )
        if machine.kind == "cuda" and share > train.sequence_parallel and fits_nodes:
            here = share // train.nodes
            by = "heads" if heads % share == 0 else "keys"
            how = f"--gpus {share} --sequence-parallel {share}"
            changes = {"sequence_parallel": share, "processes": share, "windows_per_step": 1}
            yield (
                f"share each window over {share} GPUs",
                how if by == "heads" else f"{how} --set train.sequence_parallel_by=keys",
                _with(demand, **changes, sequence_parallel_by=by),
                dataclasses.replace(machine, devices=max(here, machine.devices)),
            )


def _with(demand: Demand, **changes: Any) -> Demand:
    train: TrainConfig = demand.train.model_copy(update=changes)
    return dataclasses.replace(demand, train=train)
