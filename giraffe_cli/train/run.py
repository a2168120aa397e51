"""A training run that is open: everything the loop moves, and the files it leaves."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from giraffe_cli.model.full import give_full
from giraffe_cli.model.trainable import save_trained
from giraffe_cli.rundir import begin_stage, finish_stage, write_sealed
from giraffe_cli.train.beginning import beginning
from giraffe_cli.train.checkpoints import (
    give_checkpoint,
    give_weights,
    load_parameters,
    save_checkpoint,
    save_weights,
    truncate_metrics,
)
from giraffe_cli.train.data import Window, WindowStream
from giraffe_cli.train.gradients import wait_for_all
from giraffe_cli.train.held_out import held_out_nll
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.objective import AbstractObjective
from giraffe_cli.train.setup import peak_memory_bytes
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.trackers import log_step, quiet_stdout, start_trackers
from giraffe_cli.train.window_loss import WindowLoss


@dataclass
class Run:
    """One process's side of a training run."""

    job: TrainJob
    identity: dict[str, Any]
    stream: WindowStream
    held_out: Sequence[Window]
    """What is measured on between steps; empty where nothing is."""
    accelerator: Accelerator
    layout: Layout
    model: WindowLoss
    objective: AbstractObjective
    trained: nn.Module
    """The same weights without the loss: PEFT's model, or the base itself."""
    parameters: dict[str, Tensor]
    """What the optimiser moves."""
    kept: dict[str, Tensor]
    """What is saved: those, and constants they only make sense with."""
    optimizer: torch.optim.Optimizer
    state: TrainState

    @property
    def device(self) -> torch.device:
        """Where this process trains."""
        device: torch.device = self.accelerator.device
        return device

    def measure(self) -> bool:
        """The loss on the held-out windows, into the state; whether it is the lowest so far."""
        started = time.monotonic()
        nll = held_out_nll(self.model, self.held_out, self.layout, self.device)
        self.state.seconds += time.monotonic() - started
        return self.state.measured(nll)

    def save(self) -> None:
        """A checkpoint of the step just done; every process waits until it counts."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.job.checkpoints_dir,
                self.state,
                self.kept,
                self.optimizer,
                beginning(self.identity, self.state.step, self.job.config),
                self.job.config.keep_checkpoints,
                self.job.config.keep == "best",
            )
        elif self._gives_pieces:
            give_checkpoint(self.kept, self.optimizer)
        wait_for_all(self.device)

    def write_adapter(self) -> None:
        """The finished adapter and what the training was; the adapter's manifest comes last."""
        parameters = self.model.held_here(dict(self.trained.named_parameters()))
        if self.accelerator.is_main_process:
            chosen = self._choose_weights()
            write_sealed(self.job.summary_path, self._summary(chosen))
            if self.job.hands_on:
                save_weights(self.job.weights_path, self.kept)
            folder = begin_stage(self.job.adapter_dir)
            source = self.job.checkpoint.source
            save_trained(self.trained, parameters, folder, self.job.table, source)
            finish_stage(folder, self.identity)
        elif self._gives_pieces:
            self._choose_weights()
            if self.job.hands_on:
                give_weights(self.kept)
            give_full(parameters)
        wait_for_all(self.device)

    @property
    def _gives_pieces(self) -> bool:
        """Whether the first process needs this one's pieces of the weights to write them."""
        is_beside_it = self.layout.rank < self.layout.base_processes
        return self.model.trained_base is not None and is_beside_it

    def _choose_weights(self) -> int:
        """Load the weights the run ends with; the step they are of."""
        best, last = self.state.best_step, self.state.step
        if self.job.config.keep == "last" or best is None or best == last:
            return last
        load_parameters(self.job.checkpoints_dir, best, self.kept)
        return best

    def _summary(self, adapter_step: int) -> dict[str, Any]:
        state = self.state
        return {
            "steps": state.step,
            "trained_tokens": state.trained_tokens,
            "seconds": round(state.seconds, 2),
            "final_loss": state.loss,
            "peak_memory_bytes": peak_memory_bytes(self.device),
            "adapter_step": adapter_step,
            "stopped_early": state.has_stopped_early(self.job.config),
            "cut_short": not state.is_over(self.job.config),
            "bad_steps": state.bad_steps,
            "held_out_nll": state.best_nll
            if adapter_step == state.best_step
            else state.held_out_nll,
        }

    def close(self) -> None:
        """Finish trackers and leave the process group."""
        self.accelerator.free_memory()
        with quiet_stdout():
            self.accelerator.end_training()


@contextlib.contextmanager
def recorder(run: Run) -> Iterator[Callable[..., None]]:
    """A function that appends one step to `metrics.jsonl` and to the trackers; rank 0 writes."""
    job, accelerator = run.job, run.accelerator
    if not accelerator.is_main_process:
        yield lambda **values: None
        return
    if job.config.trackers:
        start_trackers(accelerator, job, is_resumed=run.state.step > 0)
    truncate_metrics(job.metrics_path, run.state.step)
    with open(job.metrics_path, "a", encoding="utf-8") as handle:

        def record(**values: float | None) -> None:
            handle.write(json.dumps(values) + "\n")
            handle.flush()
            log_step(accelerator, values)

        yield record
