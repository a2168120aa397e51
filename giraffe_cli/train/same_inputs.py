"""Finished steps belong to the inputs that are asked for, or the run is refused.

    adapter/manifest.json, checkpoints/step-40/manifest.json   `inputs`: what decided the weights

Nothing that was trained is removed because something beside it changed: a folder of packed windows
made anew, or a version of giraffe that tells trainings apart by more. What has other learning rates
than are asked for now is, where steps before it are gone on from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import MANIFEST, read_kept
from giraffe_cli.train.beginning import beginning
from giraffe_cli.train.checkpoints import saved_steps
from giraffe_cli.train.job import TrainJob

TOLD = {
    "checkpoint": "the base",
    "source": "the base's name",
    "rope": "the RoPE table",
    "packed": "the packed windows",
    "positions": "train.positions",
    "target_length": "target_length",
    "dtype": "dtype",
    "seed": "seed",
    "start_from": "what the stage before ended with",
}
"""What all steps of a training have in common, in words."""
HINT = "put it back as it was, or choose another --out"


def right_inputs(
    identity: Mapping[str, Any], config: TrainConfig, step: int
) -> tuple[Mapping[str, Any], ...]:
    """Those by which a checkpoint of `step` steps belongs to the training of `identity`
    (`TrainJob.identity`); the second is what earlier versions wrote, who resumed a run with its
    very steps alone."""
    return (beginning(identity, step, config), identity) if step <= config.steps else ()


def check_inputs(job: TrainJob, packed_digest: str) -> None:
    """What was trained in the folder of `job` was trained on its inputs, and some of the steps can
    be gone on from.

    Raises:
        InvalidInput: it was trained on others, which are named.
    """
    identity = _as_written(job.identity(packed_digest))
    kept = dict(_checkpoints(job.checkpoints_dir))
    for inputs in filter(None, [_inputs(job.adapter_dir), *kept.values()]):
        other = [name for key, name in TOLD.items() if inputs.get(key) != identity.get(key)]
        if other:
            raise InvalidInput(
                f"{job.run_dir} was trained on other inputs; different: {', '.join(other)}", HINT
            )
    right = {
        step: [_as_written(one) for one in right_inputs(identity, job.config, step)]
        for step in kept
    }
    if kept and not any(inputs in right[step] for step, inputs in kept.items()):
        newest = max(kept)
        raise InvalidInput(
            f"{job.checkpoints_dir} holds {newest} steps of another training; different: "
            f"{_differences(kept[newest], right[newest] or [identity])}",
            HINT,
        )


def _checkpoints(folder: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Steps and inputs of the finished ones; one whose manifest is damaged is none."""
    for step in saved_steps(folder):
        if inputs := _inputs(folder / f"step-{step}"):
            yield step, inputs


def _inputs(folder: Path) -> Mapping[str, Any]:
    manifest = read_kept(folder / MANIFEST)
    inputs = manifest.get("inputs") if isinstance(manifest, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _as_written(value: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(json.dumps(dict(value)))
    return written


def _differences(found: Mapping[str, Any], right: list[dict[str, Any]]) -> str:
    """Knobs of the training."""
    here, there = found.get("train", {}), right[0]["train"]
    names = sorted(key for key in {*here, *there} if here.get(key) != there.get(key))
    words = {"rates": "learning rates", "measured_after": "when held-out text was measured"}
    return ", ".join(words.get(name, f"train.{name}") for name in names)
