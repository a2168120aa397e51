"""The control run: the same fine-tune without length, so that its gain is the text's domain alone.

    run       window 2k of 16k (pose), yarn to 16k     base native at 1k
    control   window 1k (plain), no scaling, and twice the windows a step

Same corpora, held-out documents, seed, steps, learning rates and tokens a step, as near as whole
windows allow; a run of several stages has a control of as many. Windows that already fit the native
length are the very windows of the run, in the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.rope import RopeConfig
from giraffe_cli.config.train import LONGCE_KNOBS, TrainConfig
from giraffe_cli.corpus.store import is_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import RopeTable, make_table
from giraffe_cli.rundir import MANIFEST, read_kept
from giraffe_cli.train.loop import TrainResult
from giraffe_cli.training import TrainingStage
from giraffe_cli.units import format_length

FOLDER = "control"


def control_stages(
    stages: Sequence[TrainingStage], checkpoint: Checkpoint, run_dir: Path
) -> list[TrainingStage]:
    """A control for each of `stages`, in `run_dir/control`; none where none was asked for.

    Raises:
        InvalidInput: the base is scaled already; its native window is then none that a model
            without scaling has. Or windows that were packed are longer than the native ones.
    """
    if not stages[0].config.train.control:
        return []
    if checkpoint.existing_rope is not None:
        raise InvalidInput(
            f"a control run trains without scaling, and {checkpoint.source} is scaled already",
            "leave --control out, or extend the unscaled base",
        )
    table = native_table(checkpoint)
    folders = [run_dir / FOLDER / stage.folder.relative_to(run_dir) for stage in stages]
    return [
        TrainingStage(
            _as_begun(control_config(stage.config, checkpoint), stage.config, folder),
            table,
            folder,
            stage.seed,
            f"control of {stage.name}",
        )
        for stage, folder in zip(stages, folders, strict=True)
    ]


def native_table(checkpoint: Checkpoint) -> RopeTable:
    """The unscaled table over the native window."""
    native = checkpoint.native_length
    longer = make_table("none", {}, checkpoint.head(native + 1))
    parameters = {"rope_theta": longer.rope_theta, "rope_type": "default"}
    return dataclasses.replace(longer, target_length=native, rope_parameters=parameters)


def control_config(stage: ExtendConfig, checkpoint: Checkpoint) -> ExtendConfig:
    """`stage` at the native window, with as many tokens a step.

    Raises:
        InvalidInput: `data` is a packed directory of longer windows, which cannot be cut again.
    """
    window = min(stage.window, checkpoint.native_length)
    if window < stage.window and any(is_packed(Path(source)) for source in stage.data):
        raise InvalidInput(
            f"the control run needs windows of {format_length(window)}, the native window; "
            f"{', '.join(stage.data)} holds windows of {format_length(stage.window)}",
            "name the documents as --data instead of the packed directory",
        )
    knobs: dict[str, Any] = {
        "window": window,
        "windows_per_step": windows_per_step(stage.train, stage.window, window),
        "positions": "plain",
        "position_knobs": {},
        # neither ends early nor is chosen: it is compared by its steps
        "patience": None,
        "keep": "last",
    }
    if window <= stage.train.short_context_of(checkpoint.native_length):
        # no token sees more than a short context: LongCE would be this
        knobs |= {"loss": "ce", **LONGCE_KNOBS}
    return stage.model_copy(
        update={
            "target_length": checkpoint.native_length,
            "rope": RopeConfig(strategy="none"),
            "train": stage.train.model_copy(update=knobs),
        }
    )


def windows_per_step(train: TrainConfig, window: int, shorter: int) -> int:
    """Windows of `shorter` tokens that come nearest to the tokens of a step, shared by all
    processes: 3 of 8k for one of 20k, rounded half up."""
    shares = max(1, (train.processes or 1) // train.sequence_parallel)
    return _nearest(shares, window * train.windows_per_step, shorter)


def _nearest(shares: int, tokens: int, shorter: int) -> int:
    return shares * max(1, int(tokens / (shorter * shares) + 0.5))


def _as_begun(control: ExtendConfig, stage: ExtendConfig, folder: Path) -> ExtendConfig:
    """`control` with the windows of a step that its training in `folder` has, where other processes
    than now would have made it those and these can share them, or have nothing to do."""
    begun, is_over = _begun(folder)
    train, tokens = stage.train, stage.window * stage.train.windows_per_step
    shares = max(1, (train.processes or 1) // train.sequence_parallel)
    possible = [n for n in range(1, train.windows_per_step + 1) if train.windows_per_step % n == 0]
    is_alike = begun in [_nearest(n, tokens, control.window) for n in possible]
    if begun is None or not is_alike or not (is_over or begun % shares == 0):
        return control
    kept = control.train.model_copy(update={"windows_per_step": begun})
    return control.model_copy(update={"train": kept})


def _begun(folder: Path) -> tuple[int | None, bool]:
    """Windows of a step of the training in `folder`, and whether it is over; None without one."""
    for path in (folder / "adapter", *sorted(folder.glob("checkpoints/step-*"))):
        manifest = read_kept(path / MANIFEST)
        if isinstance(manifest, dict):
            found = manifest.get("inputs", {}).get("train", {}).get("windows_per_step")
            return (found if isinstance(found, int) else None), path.name == "adapter"
    return None, False


def describe_control(
    last: TrainingStage, trained: Sequence[TrainResult], model_dir: Path
) -> dict[str, Any]:
    """`control` of `report.json`: what the control run was, over all its stages."""
    return {
        "model_dir": str(model_dir),
        "longest": last.config.target_length,
        "window": last.config.window,
        "windows_per_step": last.config.train.windows_per_step,
        "steps": sum(result.steps for result in trained),
        "trained_tokens": sum(result.trained_tokens for result in trained),
        "seconds": round(sum(result.seconds for result in trained), 2),
        "final_loss": trained[-1].final_loss,
        "loss": last.config.train.loss,
    }
