"""What would make a training fit that changes its outcome or needs other hardware: only proposed.

NF4 rounds the base, a shorter window trains positions by PoSE, fewer trained numbers learn less;
sequence parallelism wants more devices. What has not run on a GPU yet is proposed there too. Each
comes with the smallest peak predicted under it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.ladder import ladder
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.operations import Rates
from giraffe_cli.plan.processes import bytes_per_process
from giraffe_cli.plan.settings import TILES
from giraffe_cli.units import format_length

SHORT_WINDOW = 2048
Change = tuple[str, str, Demand, Machine]
"""What it is, the options that ask for it, and the plan under it."""


def proposals(demand: Demand, machine: Machine, rates: Rates) -> list[dict[str, Any]]:
    """Each with `what`, `how` (options to pass), `bytes` (smallest predicted peak) and `fits`."""
    found = []
    for what, how, changed, on in _changes(demand, machine):
        smallest = min(rung.total for rung in ladder(changed, on, rates))
        fits = smallest <= bytes_per_process(on, changed.train)
        found.append({"what": what, "how": how, "bytes": smallest, "fits": fits})
    return found


def _changes(demand: Demand, machine: Machine) -> Iterator[Change]:
    changes = _of_every_weight(demand) if demand.train.method == "full" else _of_the_base(demand)
    for what, how, changed in itertools.chain(_of_tiles(demand), changes, _of_the_window(demand)):
        yield what, how, changed, machine
    if machine.kind == "cuda":
        yield from _of_devices(demand, machine)


def _of_tiles(demand: Demand) -> Iterator[tuple[str, str, Demand]]:
    """On a GPU, where this has not run yet and the ladder does not take it by itself."""
    train = demand.train
    is_left = train.projection_tile == "auto" and train.checkpointing != "none"
    if demand.kind == "cuda" and is_left and TILES["cuda"] < demand.tokens:
        how = f"--set train.projection_tile={format_length(TILES['cuda'])}"
        what = "project for attention by tiles (not run on a GPU yet)"
        yield what, how, _with(demand, projection_tile=TILES["cuda"])


def _of_every_weight(demand: Demand) -> Iterator[tuple[str, str, Demand]]:
    how = "--set train.method=lora"
    yield "train an adapter instead of every weight", how, _with(demand, method="lora")
    if demand.train.optimizer == "adamw":
        how = "--set train.optimizer=adamw8bit"
        whole = " --set train.shard_base=none" if demand.train.shares_base else ""
        changed = _with(demand, optimizer="adamw8bit", shard_base="none")
        yield "moments in 8 bits", how + whole, changed
    yield from _shared_out(demand)


def _of_the_base(demand: Demand) -> Iterator[tuple[str, str, Demand]]:
    train = demand.train
    if train.quantize_base == "none":
        whole = " --set train.shard_base=none" if train.shares_base else ""
        how = f"--set train.quantize_base=nf4{whole}"
        changed = _with(demand, quantize_base="nf4", shard_base="none")
        yield "hold the base in 4 bits (NF4)", how, changed
    yield from _shared_out(demand)


def _shared_out(demand: Demand) -> Iterator[tuple[str, str, Demand]]:
    train = demand.train
    if not train.can_shard_base:
        return
    whole = "" if train.whole_layers in ("auto", 0) else " --set train.whole_layers=0"
    if demand.processes > 1 and train.shard_base == "auto":
        changed = _with(demand, shard_base="full", whole_layers=0)
        how = f"--set train.shard_base=full{whole}"
        yield "share the base out over the processes", how, changed
    if train.nodes > 1 and train.shard_base != "nodes":
        changed = _with(demand, shard_base="nodes", whole_layers=0)
        how = f"--set train.shard_base=nodes{whole}"
        yield "share the base out over the processes of all machines", how, changed


def _of_the_window(demand: Demand) -> Iterator[tuple[str, str, Demand]]:
    if demand.dtype == "float32":
        changed = dataclasses.replace(demand, dtype="bfloat16")
        yield "halve weights and activations", "--set dtype=bfloat16", changed
    if demand.window > SHORT_WINDOW:
        changed = dataclasses.replace(demand, window=SHORT_WINDOW)
        how = f"--window {format_length(SHORT_WINDOW)}"
        yield "train shorter windows with PoSE", how, changed


def _of_devices(demand: Demand, machine: Machine) -> Iterator[Change]:
    train, heads = demand.train, demand.shape.num_attention_heads
    for share in (2, 4, 8):
        fits_nodes = share % train.nodes == 0 and (
            train.shard_base != "full" or share > train.nodes
        )
        if share > train.sequence_parallel and fits_nodes:
            is_asked = train.sequence_parallel_by == "keys"
            by = "keys" if is_asked or heads % share else "heads"
            if by == "keys" and not _can_share_keys(demand):
                continue
            how = f"--gpus {share} --sequence-parallel {share}"
            if by == "keys" and not is_asked:
                how += " --set train.sequence_parallel_by=keys"
            if train.head_groups not in ("auto", 1):
                how += " --set train.head_groups=auto"
            changes = {
                **{"sequence_parallel": share, "sequence_parallel_by": by, "processes": share},
                **{"windows_per_step": 1, "head_groups": "auto"},
            }
            here = max(share // train.nodes, machine.devices)
            yield (
                f"share each window over {share} GPUs",
                how,
                _with(demand, **changes),
                dataclasses.replace(machine, devices=here),
            )


def _can_share_keys(demand: Demand) -> bool:
    """On a GPU, where a kernel of 16 bits does it."""
    kernels = ("auto", "flash", "flash4")
    return demand.dtype != "float32" and demand.train.attention_kernel in kernels


def _with(demand: Demand, **changes: Any) -> Demand:
    train: TrainConfig = demand.train.model_copy(update=changes)
    return dataclasses.replace(demand, train=train)
