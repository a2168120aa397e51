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

from giraffe_cli.config import TrainConfig
from giraffe_cli.corpus.store import PackedRows, open_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.trainable import save_trained, state_parameters
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import begin_stage, finish_stage, write_json
from giraffe_cli.train.checkpoints import (
    clear_leftovers,
    load_parameters,
    load_weights,
    restore_latest,
    save_checkpoint,
    save_weights,
    truncate_metrics,
)
from giraffe_cli.train.data import Window, WindowStream
from giraffe_cli.train.gradients import start_equal
from giraffe_cli.train.held_out import held_out_nll, held_out_windows
from giraffe_cli.train.job import WEIGHTS, TrainJob
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.optimizer import make_optimizer
from giraffe_cli.train.schedule import decay_steps
from giraffe_cli.train.setup import (
    build_model,
    make_accelerator,
    peak_memory_bytes,
    trainable_parameters,
)
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.trackers import log_step, quiet_stdout, start_trackers


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
    model: nn.Module
    """`WindowLoss`."""
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
                self.identity,
                self.job.config.keep_checkpoints,
                self.job.config.keep == "best",
            )
        self.accelerator.wait_for_everyone()

    def write_adapter(self) -> None:
        """The finished adapter and what the training was; the adapter's manifest comes last."""
        if self.accelerator.is_main_process:
            chosen = self._choose_weights()
            write_json(self.job.summary_path, self._summary(chosen))
            if self.job.hands_on:
                save_weights(self.job.weights_path, self.kept)
            folder = begin_stage(self.job.adapter_dir)
            save_trained(self.trained, folder, self.job.table, self.job.checkpoint.source)
            finish_stage(folder, self.identity)
        self.accelerator.wait_for_everyone()

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


def open_run(job: TrainJob, reporter: Reporter) -> Run:
    """Load everything and stand where the newest checkpoint of this job left off.

    Raises:
        InvalidInput: there are no windows, or targets or trackers cannot be used.
    """
    rows, config = open_packed(job.packed_dir), job.config
    stream, identity = open_stream(job, rows), job.identity(rows.digest)
    held_out = open_held_out(job, rows, stream, reporter)
    accelerator = make_accelerator(job)
    layout = Layout(accelerator.process_index, accelerator.num_processes, config.sequence_parallel)
    model = build_model(job).to(accelerator.device)
    parameters, kept = trainable_parameters(model), state_parameters(model)
    if job.start_from:
        load_weights(job.start_from / WEIGHTS, kept)
    optimizer = make_optimizer(parameters, config)
    if accelerator.is_main_process:
        stale = clear_leftovers(job.checkpoints_dir, identity, config.keep == "best")
        if stale:
            reporter.warn(f"removed {stale} checkpoints of other inputs: {job.checkpoints_dir}")
    accelerator.wait_for_everyone()
    state = restore_latest(job.checkpoints_dir, kept, optimizer, identity)
    start_equal(kept.values())
    if state.step:
        reporter.info(f"resuming after step {state.step} of {config.steps}")
    warn_of_schedule(config, reporter)
    return Run(
        job=job,
        identity=identity,
        stream=stream,
        held_out=held_out,
        accelerator=accelerator,
        layout=layout,
        model=model,
        trained=model.model,
        parameters=parameters,
        kept=kept,
        optimizer=optimizer,
        state=state,
    )


def warn_of_schedule(config: TrainConfig, reporter: Reporter) -> None:
    """Say when warm-up and decay leave no step at the peak learning rate."""
    decay = decay_steps(config)
    if config.warmup_steps + decay >= config.steps:
        and_decay = f" and decay of {decay}" if decay else ""
        reporter.warn(
            f"warm-up of {config.warmup_steps}{and_decay} steps in a training of {config.steps}: "
            "the peak learning rate is not held; --set train.warmup_steps=N shortens it"
        )


def open_held_out(
    job: TrainJob, rows: PackedRows, stream: WindowStream, reporter: Reporter
) -> Sequence[Window]:
    """The windows that `job` measures on; none where it does not.

    Raises:
        InvalidInput: packing held nothing out.
    """
    config = job.config
    if not config.held_out_every:
        return []
    windows = held_out_windows(rows, stream, job.checkpoint.path, config.held_out_windows)
    if len(windows) < config.held_out_windows:
        reporter.warn(
            f"measuring on {len(windows)} held-out documents, train.held_out_windows asks for "
            f"{config.held_out_windows}: packing held no more out"
        )
    return windows


def open_stream(job: TrainJob, rows: PackedRows) -> WindowStream:
    """The windows of `job`.

    Raises:
        InvalidInput: there are none.
    """
    if len(rows) == 0:
        raise InvalidInput(f"{job.packed_dir} holds no training windows", "give more --data")
    return WindowStream(
        rows=rows,
        positions=make_positions(job.positions, job.config.position_knobs),
        window=job.window,
        target_length=job.target_length,
        seed=job.seed,
        windows_per_step=job.config.windows_per_step,
    )


@contextlib.contextmanager
def recorder(run: Run) -> Iterator[Callable[..., None]]:
    """A function that appends one step to `metrics.jsonl` and to the trackers; rank 0 writes."""
    job, accelerator = run.job, run.accelerator
    if not accelerator.is_main_process:
        yield lambda **values: None
        return
    if job.config.trackers:
        start_trackers(accelerator, job)
    truncate_metrics(job.metrics_path, run.state.step)
    with open(job.metrics_path, "a", encoding="utf-8") as handle:

        def record(**values: float | None) -> None:
            handle.write(json.dumps(values) + "\n")
            handle.flush()
            log_step(accelerator, values)

        yield record
