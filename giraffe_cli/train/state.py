"""A training run's state, saved and restored as one unit, and the signals that ask it to stop.

    checkpoints/step-40/state.safetensors   parameter/…  exp_avg/…  exp_avg_sq/…  step/…
    checkpoints/step-40/state.json          step, trained tokens, seconds, loss, data cursor
    checkpoints/step-40/manifest.json       written last: without it the folder does not count

There is no random-number state to save: window order, positions and dropout are drawn from
(seed, window number), see `train/data.py`, so the cursor is the state of every generator. The same
holds for a resume on another number of processes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from giraffe_cli.rundir import (
    atomic_open,
    begin_stage,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
    write_json,
)
from giraffe_cli.train.data import WindowStream

_TENSORS = "state.safetensors"
_FACTS = "state.json"


@dataclass
class TrainState:
    """Everything that changes between two steps and is no tensor."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    row: int = 0
    """Place in the epoch's permutation of the next window."""
    trained_tokens: int = 0
    """Tokens the model has read, over all processes."""
    seconds: float = 0.0
    loss: float | None = None
    """Of the last step, nats per target."""

    def advance(self, stream: WindowStream, num_tokens: int, loss: float, seconds: float) -> None:
        """A step over `num_tokens` tokens is done."""
        self.step += 1
        self.epoch, self.row = stream.cursor(self.step * stream.windows_per_step)
        self.trained_tokens += num_tokens
        self.seconds += seconds
        self.loss = loss


def save_checkpoint(
    folder: Path,
    state: TrainState,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    keep: int,
) -> None:
    """Write `folder/step-N`, then remove all but the newest `keep`.

    Raises:
        GiraffeError: the folder cannot be written or the disk is full.
    """
    target = begin_stage(folder / f"step-{state.step}")
    with atomic_open(target / _TENSORS) as handle:
        handle.write(save(_collect(parameters, optimizer)))
    write_json(target / _FACTS, asdict(state))
    finish_stage(target, identity)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def restore_latest(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> TrainState:
    """Load the newest checkpoint of this `identity` into place; a fresh state without one."""
    for path in _newest_first(folder):
        if stage_holds(path, identity):
            _distribute(load_file(path / _TENSORS), parameters, optimizer)
            return TrainState(**read_json(path / _FACTS))
    return TrainState()


def clear_leftovers(folder: Path, identity: dict[str, Any]) -> int:
    """Remove checkpoints that are unfinished or of another run; the number of finished ones."""
    make_folder(folder)
    stale = [path for path in _newest_first(folder) if not stage_holds(path, identity)]
    finished = sum((path / "manifest.json").exists() for path in stale)
    for path in stale:
        shutil.rmtree(path)
    return finished


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the lines of `metrics.jsonl` up to `step`; what a killed run wrote beyond it goes."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # the last line of a killed run may be cut
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    with atomic_open(path, "w") as handle:
        handle.writelines(kept)


@dataclass
class StopRequest:
    """Whether a signal, or the process that started this one, asked for an end."""

    file: Path | None = None
    """Its existence is a request too: how a parent tells its workers."""
    signalled: bool = False

    @property
    def requested(self) -> bool:
        return self.signalled or (self.file is not None and self.file.exists())


@contextlib.contextmanager
def stop_requests(
    file: Path | None = None, then: Callable[[], None] = lambda: None
) -> Iterator[StopRequest]:
    """Within the block, the first SIGINT or SIGTERM is noted (and `then` called); a second one
    raises KeyboardInterrupt. Outside the main thread signals are left alone."""
    stop = StopRequest(file)

    def note(number: int, frame: object) -> None:
        if stop.signalled:
            raise KeyboardInterrupt
        stop.signalled = True
        then()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _newest_first(folder: Path) -> list[Path]:
    steps = {
        int(path.name.removeprefix("step-")): path
        for path in (folder.iterdir() if folder.exists() else [])
        if path.name.removeprefix("step-").isdigit()
    }
    return [steps[number] for number in sorted(steps, reverse=True)]


def _collect(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def _distribute(
    tensors: dict[str, Tensor],
    parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    by_name: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition("/")
        by_name[name][key] = tensor
    with torch.no_grad():
        for name, parameter in parameters.items():
            entry = by_name[name]
            parameter.copy_(entry.pop("parameter"))
            optimizer.state[parameter] = {
                # Adam's step count stays on the CPU, its moments live beside the parameter
                key: value if key == "step" else value.to(parameter.device)
                for key, value in entry.items()
            }
