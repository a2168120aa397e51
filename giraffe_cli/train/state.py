"""Everything of a training run that changes between two steps and is no tensor.

There is no random-number state: window order, positions and dropout are drawn from (seed, window
number), see `train/data.py`, so the cursor is the state of every generator. The learning rate is a
function of the step (`train/schedule.py`), and `metrics.jsonl` is cut to the step on resume. The
same holds for a resume on another number of processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.train.data import WindowStream


@dataclass
class TrainState:
    """Cursor and counters, saved with the tensors as one unit (`train/checkpoints.py`)."""

    step: int = 0
    """Optimiser steps done, skipped ones among them."""
    epoch: int = 0
    row: int = 0
    """Place in the epoch's permutation of the next window."""
    trained_tokens: int = 0
    """Tokens of the windows that moved the weights, over all processes."""
    seconds: float = 0.0
    loss: float | None = None
    """Of the last step that moved the weights, nats per target."""
    bad_steps: int = 0
    """Steps skipped because loss or gradient were no numbers."""
    bad_in_a_row: list[str] = field(default_factory=list)
    """What the latest of them were, one sentence each; empty after a good step."""
    held_out_nll: float | None = None
    """Of the last measurement, nats per target."""
    best_nll: float | None = None
    best_step: int | None = None
    """The step after which it was measured."""
    not_better: int = 0
    """Measurements since."""

    def advance(self, stream: WindowStream, num_tokens: int, loss: float, seconds: float) -> None:
        """A step over `num_tokens` tokens moved the weights."""
        self._move_on(stream, seconds)
        self.trained_tokens += num_tokens
        self.loss = loss
        self.bad_in_a_row = []

    def skip(self, stream: WindowStream, told: str, seconds: float) -> None:
        """A step moved nothing, `told` says why; the data move on all the same."""
        self._move_on(stream, seconds)
        self.bad_steps += 1
        self.bad_in_a_row = [*self.bad_in_a_row, told]

    def measured(self, nll: float) -> bool:
        """The held-out loss after this step; whether it is the lowest so far."""
        self.held_out_nll = nll if math.isfinite(nll) else None
        is_better = math.isfinite(nll) and (self.best_nll is None or nll < self.best_nll)
        if is_better:
            self.best_nll, self.best_step, self.not_better = nll, self.step, 0
        else:
            self.not_better += 1
        return is_better

    def has_stopped_early(self, config: TrainConfig) -> bool:
        """Whether `patience` measurements in a row were no better, before the last step."""
        return (
            config.patience is not None
            and self.not_better >= config.patience
            and self.step < config.steps
        )

    def is_over(self, config: TrainConfig) -> bool:
        """Whether no step is left to take."""
        return self.step >= config.steps or self.has_stopped_early(config)

    def _move_on(self, stream: WindowStream, seconds: float) -> None:
        self.step += 1
        self.epoch, self.row = stream.cursor(self.step * stream.windows_per_step)
        self.seconds += seconds
