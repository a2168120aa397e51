"""A training run that is open: everything the loop moves, and the files it leaves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from giraffe_cli.corpus.store import PackedRows, open_packed
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.lora import save_adapter
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.rundir import begin_stage, finish_stage, write_json
from giraffe_cli.train.data import WindowStream
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.setup import (
    build_model,
    make_accelerator,
    make_optimizer,
    peak_memory_bytes,
    trainable_parameters,
)
from giraffe_cli.train.state import (
    TrainState,
    clear_leftovers,
    restore_latest,
    save_checkpoint,
    truncate_metrics,
)


@dataclass
class Run:
    """One process's side of a training run."""

    job: TrainJob
    identity: dict[str, Any]
    stream: WindowStream
    accelerator: Accelerator
    model: nn.Module
    """`WindowLoss`, wrapped for several processes."""
    adapted: PeftModel
    """The same weights, as PEFT knows them."""
    parameters: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    state: TrainState

    def save(self) -> None:
        """A checkpoint of the step just done; every process waits until it counts."""
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.job.checkpoints_dir,
                self.state,
                self.parameters,
                self.optimizer,
                self.identity,
                self.job.config.keep_checkpoints,
            )
        self.accelerator.wait_for_everyone()

    def write_adapter(self) -> None:
        """The finished adapter and what the training was; the adapter's manifest comes last."""
        if self.accelerator.is_main_process:
            summary = {
                "steps": self.state.step,
                "trained_tokens": self.state.trained_tokens,
                "seconds": round(self.state.seconds, 2),
                "final_loss": self.state.loss,
                "peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
            }
            write_json(self.job.summary_path, summary)
            folder = begin_stage(self.job.adapter_dir)
            save_adapter(self.adapted, folder, self.job.table, self.job.checkpoint.source)
            finish_stage(folder, self.identity)
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Finish trackers and leave the process group."""
        self.accelerator.free_memory()
        self.accelerator.end_training()


def open_run(job: TrainJob, reporter: Reporter) -> Run:
    """Load everything and stand where the newest checkpoint of this job left off.

    Raises:
        InvalidInput: there are no windows, or targets or trackers cannot be used.
    """
    rows = open_packed(job.packed_dir)
    stream, identity = open_stream(job, rows), job.identity(rows.digest)
    accelerator = make_accelerator(job)
    loss_model = build_model(job)
    parameters = trainable_parameters(loss_model)
    optimizer = make_optimizer(parameters, job.config)
    if accelerator.is_main_process:
        stale = clear_leftovers(job.checkpoints_dir, identity)
        if stale:
            reporter.warn(f"removed {stale} checkpoints of other inputs: {job.checkpoints_dir}")
    accelerator.wait_for_everyone()
    model = accelerator.prepare(loss_model)
    state = restore_latest(job.checkpoints_dir, parameters, optimizer, identity)
    if state.step:
        reporter.info(f"resuming after step {state.step} of {job.config.steps}")
    if job.config.warmup_steps >= job.config.steps:
        reporter.warn(
            f"warm-up of {job.config.warmup_steps} steps in a training of {job.config.steps}: "
            "the peak learning rate is not held; --set train.warmup_steps=N shortens it"
        )
    return Run(
        job, identity, stream, accelerator, model, loss_model.model, parameters, optimizer, state
    )


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
        settings = {k: v for k, v in job.config.model_dump().items() if isinstance(v, int | float)}
        accelerator.init_trackers("giraffe", config={**settings, "target": job.target_length})
    truncate_metrics(job.metrics_path, run.state.step)
    with open(job.metrics_path, "a", encoding="utf-8") as handle:

        def record(**values: float) -> None:
            handle.write(json.dumps(values) + "\n")
            handle.flush()
            accelerator.log(values, step=int(values["step"]))

        yield record
