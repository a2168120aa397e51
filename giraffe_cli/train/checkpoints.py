"""A training run's checkpoints: written as one unit, restored as one, cleared when stale.

checkpoints/step-40/state.safetensors   parameter/…  and the optimiser's exp_avg/…, step/…
checkpoints/step-40/state.json          `TrainState`, and what in the optimiser is no tensor
checkpoints/step-40/manifest.json       written last: without it the folder does not count
weights.safetensors                     the parameters a stage ended with, for the stage after it
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.model.pieces import Spread, all_spread, range_of, spread
from giraffe_cli.rundir import (
    MANIFEST,
    atomic_open,
    begin_stage,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
    write_sealed,
)
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.state_file import Range, give_tensors, read_tensors, write_tensors

_TENSORS = "state.safetensors"
_FACTS = "state.json"
_OPTIMIZER = "optimizer"
_PARAMETER = "parameter"


def save_checkpoint(
    folder: Path,
    state: TrainState,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    keep: int,
    keep_best: bool = False,
) -> None:
    """Write `folder/step-N`, then remove all but the newest `keep` and, if asked, the best that
    each of these knows of: a run that is lengthened may go on from any of them.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    target = begin_stage(folder / f"step-{state.step}")
    write_tensors(target / _TENSORS, _tensors(parameters, optimizer))
    scalars = {name: _scalars(optimizer.state[p]) for name, p in parameters.items()}
    write_sealed(target / _FACTS, {**asdict(state), _OPTIMIZER: scalars})
    finish_stage(target, identity)
    saved = saved_steps(folder)
    best = {_best_step(folder, number) for number in saved[:keep]} if keep_best else set()
    for number in saved[keep:]:
        if number not in best:
            shutil.rmtree(_of_step(folder, number))


def give_checkpoint(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Take part in another process's `save_checkpoint`, where parameters are spread over both."""
    give_tensors(_tensors(parameters, optimizer))


def restore(
    folder: Path, step: int, parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> TrainState:
    """Load the checkpoint of `step` into place: one of `sound_steps`, which this process or
    another has looked for."""
    path = folder / f"step-{step}"
    facts = read_json(path / _FACTS)
    _restore(path / _TENSORS, facts.pop(_OPTIMIZER), parameters, optimizer)
    return TrainState(**facts)


def load_parameters(folder: Path, step: int, parameters: Mapping[str, Tensor]) -> None:
    """Set `parameters` to those of the checkpoint of `step`.

    Raises:
        GiraffeError: it is not there.
    """
    path = folder / f"step-{step}"
    if not (path / MANIFEST).exists():
        raise GiraffeError(f"{path} is gone: the weights of the best step", "train again")
    with torch.no_grad():
        for full_name, tensor in read_tensors(path / _TENSORS, _of_state(parameters)):
            key, _, name = full_name.partition("/")
            if key == _PARAMETER:
                parameters[name].copy_(tensor)


def save_weights(path: Path, parameters: Mapping[str, Tensor]) -> None:
    """The trained parameters by name, for a later stage to go on from.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    write_tensors(path, all_spread(parameters))


def give_weights(parameters: Mapping[str, Tensor]) -> None:
    """Take part in another process's `save_weights`, where parameters are spread over both."""
    give_tensors(all_spread(parameters))


def load_weights(path: Path, parameters: Mapping[str, Tensor]) -> None:
    """Set `parameters` to what `save_weights` left; the optimiser knows nothing of it.

    Raises:
        GiraffeError: the file holds other parameters, by name or shape.
    """
    left = set(parameters)
    with torch.no_grad():
        for name, tensor in read_tensors(path, _of(parameters)):
            if name not in left or tensor.shape != parameters[name].shape:
                left.add(name)
                break
            parameters[name].copy_(tensor)
            left.remove(name)
    if left:
        raise GiraffeError(
            f"{path} holds other parameters than are trained now, such as {min(left)}",
            "train the stages of a run with the same adapter",
        )


def sound_steps(
    folder: Path, inputs: Callable[[int], Sequence[Mapping[str, Any]]], keep_best: bool = False
) -> list[int]:
    """The steps of whole checkpoints that have one of the `inputs` which are right for so many of
    them, and, under `keep_best`, the best one that they name beside them; newest first.

    Raises:
        InvalidInput: there are such, and all of them name a best that is missing or damaged.
    """
    saved = saved_steps(folder)
    whole = [n for n in saved if any(stage_holds(_of_step(folder, n), r) for r in inputs(n))]
    if not keep_best:
        return whole
    best = {number: _best_step(folder, number) for number in whole}
    sound = [number for number in whole if best[number] is None or best[number] in whole]
    if whole and not sound:
        raise InvalidInput(
            f"{_of_step(folder, whole[0])} goes by step {best[whole[0]]} as the best so far, whose "
            "checkpoint is missing or damaged",
            f"put it back from a copy, or remove {folder} to train again from the beginning",
        )
    return sound


def clear_leftovers(folder: Path, sound: Sequence[int]) -> int:
    """Remove all checkpoints but those of the `sound` steps; the number of finished ones."""
    make_folder(folder)
    stale = [_of_step(folder, number) for number in saved_steps(folder) if number not in sound]
    finished = sum((path / MANIFEST).exists() for path in stale)
    for path in stale:
        shutil.rmtree(path)
    return finished


def _of_step(folder: Path, step: int) -> Path:
    return folder / f"step-{step}"


def _best_step(folder: Path, step: int) -> int | None:
    """The step of the lowest held-out loss that the finished checkpoint of `step` knows of."""
    best: int | None = read_json(_of_step(folder, step) / _FACTS)["best_step"]
    return best


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines of `metrics.jsonl` up to `step`; what a killed run wrote beyond it goes."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with atomic_open(path, "w") as handle:
        handle.writelines(kept)


def saved_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint folder, newest first."""
    names = [p.name.removeprefix("step-") for p in folder.iterdir()] if folder.exists() else []
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _tensors(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor | Spread]:
    """Everything to save, where it lies; nothing is copied."""
    tensors = {f"{_PARAMETER}/{name}": one for name, one in all_spread(parameters).items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{name}"] = spread(parameter, value)
    return tensors


def _of(parameters: Mapping[str, Tensor]) -> Callable[[str, tuple[int, ...]], Range | None]:
    """Which numbers of a saved tensor this process has."""
    return lambda name, shape: range_of(parameters[name], shape) if name in parameters else None


def _of_state(parameters: Mapping[str, Tensor]) -> Callable[[str, tuple[int, ...]], Range | None]:
    """The same of `key/name`."""
    part_of = _of(parameters)
    return lambda full_name, shape: part_of(full_name.partition("/")[2], shape)


def _scalars(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not isinstance(value, Tensor)}


def _restore(
    path: Path,
    scalars: Mapping[str, dict[str, Any]],
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    states: dict[str, dict[str, Any]] = {name: dict(scalars[name]) for name in parameters}
    with torch.no_grad():
        for full_name, tensor in read_tensors(path, _of_state(parameters)):
            key, _, name = full_name.partition("/")
            if key == _PARAMETER:
                parameters[name].copy_(tensor)
            else:
                # Adam's step count stays on the CPU, its moments live beside the parameter
                device = tensor.device if key == "step" else parameters[name].device
                states[name][key] = tensor.to(device)
    for name, parameter in parameters.items():
        if states[name]:
            optimizer.state[parameter] = states[name]
