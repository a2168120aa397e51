"""Whether `patience` can end a training."""

from __future__ import annotations

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import UsageError
from giraffe_cli.units import counted


def check_patience(config: TrainConfig) -> None:
    """It is measured often enough before the last step of one stage.

    Raises:
        UsageError: `patience` has no effect.
    """
    if not (config.patience and config.held_out_every and config.steps):
        return
    measured = (config.steps - 1) // config.held_out_every
    if measured <= config.patience:
        raise UsageError(
            f"train.patience: {config.patience} never ends a training of "
            f"{counted(config.steps, 'step')} that is measured {counted(measured, 'time')} before "
            "the last",
            "a smaller train.held_out_every, or leave train.patience out",
        )
