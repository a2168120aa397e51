"""What would make a training fit that changes its outcome or needs other hardware: only proposed.

NF4 rounds the base, a shorter window trains positions by PoSE, fewer trained numbers learn less,
more windows a step learn otherwise; sequence parallelism wants more devices. What has not run on a
GPU yet is proposed there too. Each comes with the smallest peak predicted under it. Where none is
enough on the machine there is and in full windows, two together are tried, or three where nothing
else fits, and those that fit are proposed as well:

    Llama-3-8B, 256k, GPUs of 24 GB   NF4 39.6 GB, windows over four GPUs 24.7 GB, both 15.4 GB
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.plan.demand import Demand
from giraffe_cli.plan.ladder import ladder
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.operations import Rates
from giraffe_cli.plan.processes import bytes_per_process, processes_per_node
from giraffe_cli.plan.settings import TILES
from giraffe_cli.units import format_length

SHORT_WINDOW = 2048
MOST_TOGETHER, MOST_TOLD = 3, 3
"""Changes at a time, and how many such combinations are told."""


@dataclass(frozen=True)
class Change:
    """What it is, the options that ask for it, and the plan under it."""

    what: str
    how: str
    demand: Demand
    machine: Machine


Family = Callable[[Demand, Machine], Iterator[Change]]


def proposals(demand: Demand, machine: Machine, rates: Rates) -> list[dict[str, Any]]:
    """Each with `what`, `how` (options to pass), `bytes` (smallest predicted peak) and `fits`."""
    single = [
        (family, change, _told(change, rates))
        for family in (_of_tiles, _of_the_base, _of_sharing, _of_types, _of_the_window, _of_devices)
        for change in family(demand, machine)
    ]
    elsewhere = (_of_the_window, _of_devices)
    is_enough = any(told["fits"] for family, _, told in single if family not in elsewhere)
    if is_enough or _told(Change("", "", demand, machine), rates)["fits"]:
        return [told for _, _, told in single]
    enough = {told["how"] for _, _, told in single if told["fits"]}
    left = [(family, change) for family, change, told in single if not told["fits"]]
    return [*(told for _, _, told in single), *_together(left, enough, rates)]


def _told(change: Change, rates: Rates) -> dict[str, Any]:
    smallest = min(rung.total for rung in ladder(change.demand, change.machine, rates))
    fits = smallest <= bytes_per_process(change.machine, change.demand.train)
    return {"what": change.what, "how": change.how, "bytes": smallest, "fits": fits}


def _together(
    left: Sequence[tuple[Family, Change]], enough: set[str], rates: Rates
) -> list[dict[str, Any]]:
    """Two of `left` that fit together, or three where no two do and nothing is `enough` by itself:
    on the fewest devices first, in full windows before PoSE."""
    # what a change makes possible comes after it: processes share a base out, once there are some
    applied: list[Family] = [_of_devices, _of_types, _of_the_base, _of_sharing, _of_tiles]
    applied.append(_of_the_window)
    fitting: list[tuple[int, bool, int, dict[str, Any]]] = []
    for _ in range(MOST_TOGETHER - 1):
        grown: list[tuple[Family, Change]] = []
        for family, one in left:
            for later in applied[applied.index(family) + 1 :]:
                for other in later(one.demand, one.machine):
                    both = _joined(one, other)
                    told = _told(both, rates)
                    if not told["fits"]:
                        grown.append((later, both))
                    elif other.how not in enough:
                        is_pose = later is _of_the_window
                        fitting.append((other.machine.devices, is_pose, told["bytes"], told))
        if fitting or enough:
            break
        left = grown
    fitting.sort(key=lambda one: one[:3])
    return [told for *_, told in fitting[:MOST_TOLD]]


def _joined(one: Change, other: Change) -> Change:
    """`other`, which was made of the plan under `one`."""
    whats, hows = f"{one.what}, and {other.what}", f"{one.how} {other.how}"
    return Change(whats, hows, other.demand, other.machine)


def _of_tiles(demand: Demand, machine: Machine) -> Iterator[Change]:
    """On a GPU, where this has not run yet and the ladder does not take it by itself."""
    train = demand.train
    is_left = train.projection_tile == "auto" and train.checkpointing != "none"
    if demand.kind == "cuda" and is_left and TILES["cuda"] < demand.tokens:
        how = f"--set train.projection_tile={format_length(TILES['cuda'])}"
        what = "project for attention by tiles (not run on a GPU yet)"
        yield Change(what, how, _with(demand, projection_tile=TILES["cuda"]), machine)


def _of_the_base(demand: Demand, machine: Machine) -> Iterator[Change]:
    """The base in fewer bits, or what is trained of it."""
    train = demand.train
    if train.method == "full":
        what, how = "train an adapter instead of every weight", "--set train.method=lora"
        yield Change(what, how, _with(demand, method="lora"), machine)
        if train.optimizer == "adamw":
            whole = " --set train.shard_base=none" if train.shares_base else ""
            changed = _with(demand, optimizer="adamw8bit", shard_base="none")
            how = f"--set train.optimizer=adamw8bit{whole}"
            yield Change("moments in 8 bits", how, changed, machine)
    elif train.quantize_base == "none":
        changed = _with(demand, quantize_base="nf4")
        how = "--set train.quantize_base=nf4"
        yield Change("hold the base in 4 bits (NF4)", how, changed, machine)


def _of_sharing(demand: Demand, machine: Machine) -> Iterator[Change]:
    """The base over the processes there are; over all GPUs, where too few windows leave some."""
    train = demand.train
    if not train.can_shard_base:
        return
    whole = "" if train.whole_layers in ("auto", 0) else " --set train.whole_layers=0"
    shared = {"whole_layers": 0}
    each = machine.devices * train.nodes
    idle = processes_per_node(train, machine) < machine.devices and train.processes is None
    if demand.processes > 1 and train.shard_base == "auto":
        changed = _with(demand, shard_base="full", **shared)
        how = f"--set train.shard_base=full{whole}"
        yield Change("share the base out over the processes", how, changed, machine)
    if idle and train.sequence_parallel == 1 and train.shard_base == "auto":
        changed = _with(demand, shard_base="full", windows_per_step=each, **shared)
        how = f"--set train.windows_per_step={each} --set train.shard_base=full{whole}"
        what = f"a window a step for each of {each} GPUs, the base shared out over them"
        yield Change(what, how, changed, machine)
    if train.nodes > 1 and train.shard_base != "nodes":
        changed = _with(demand, shard_base="nodes", **shared)
        how = f"--set train.shard_base=nodes{whole}"
        what = "share the base out over the processes of all machines"
        yield Change(what, how, changed, machine)


def _of_types(demand: Demand, machine: Machine) -> Iterator[Change]:
    if demand.dtype == "float32":
        changed = dataclasses.replace(demand, dtype="bfloat16")
        yield Change("halve weights and activations", "--set dtype=bfloat16", changed, machine)


def _of_the_window(demand: Demand, machine: Machine) -> Iterator[Change]:
    compares = demand.train.loss != "ce"  # with a context that the window must be longer than
    short = demand.train.short_context_of(demand.shape.native_length) if compares else 0
    if demand.window > SHORT_WINDOW > short:
        changed = dataclasses.replace(demand, window=SHORT_WINDOW)
        how = f"--window {format_length(SHORT_WINDOW)}"
        yield Change("train shorter windows with PoSE", how, changed, machine)


def _of_devices(demand: Demand, machine: Machine) -> Iterator[Change]:
    train, heads = demand.train, demand.shape.num_attention_heads
    for share in (2, 4, 8) if machine.kind == "cuda" else ():
        fits_nodes = share % train.nodes == 0 and (
            train.shard_base != "full" or share > train.nodes
        )
        if share > train.sequence_parallel and fits_nodes:
            is_asked = train.sequence_parallel_by == "keys"
            by = "keys" if is_asked or heads % share else "heads"
            if by == "keys" and not _can_share_keys(demand):
                continue
            how = f"--sequence-parallel {share}"
            if train.nodes == 1:  # of all machines for `extend`, of each for `plan`
                how = f"--gpus {share} {how}"
            if train.nodes > 1 or train.processes is not None:
                how += f" --set train.processes={share}"
            if by == "keys" and not is_asked:
                how += " --set train.sequence_parallel_by=keys"
            if train.head_groups not in ("auto", 1):
                how += " --set train.head_groups=auto"
            changes = {
                **{"sequence_parallel": share, "sequence_parallel_by": by, "processes": share},
                **{"windows_per_step": 1, "head_groups": "auto"},
            }
            here = max(share // train.nodes, machine.devices)
            yield Change(
                f"share each window over {share} GPUs",
                how,
                dataclasses.replace(_with(demand, **changes), processes=share // train.nodes),
                dataclasses.replace(machine, devices=here),
            )


def _can_share_keys(demand: Demand) -> bool:
    """On a GPU, where a kernel of 16 bits does it."""
    kernels = ("auto", "flash", "flash4")
    return demand.dtype != "float32" and demand.train.attention_kernel in kernels


def _with(demand: Demand, **changes: Any) -> Demand:
    train: TrainConfig = demand.train.model_copy(update=changes)
    return dataclasses.replace(demand, train=train)
