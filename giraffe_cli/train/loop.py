"""The fine-tune, read top to bottom.

    restore → [ windows → tokens → losses → clip → step → record → checkpoint? → stop? ]* → adapter

Invariants: the loss of a step is the mean over the targets of all its windows, whatever process or
accumulation step they fell to; every random draw is a function of (seed, window number). So two
processes repeat the losses of one, and a run that is killed anywhere ends in the same bytes (on
CPU, at a fixed thread count).
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config import TrainConfig
from giraffe_cli.corpus.store import open_packed
from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import read_json, stage_holds
from giraffe_cli.train import parallel
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.run import Run, open_run, recorder
from giraffe_cli.train.setup import learning_rate, window_nats
from giraffe_cli.train.state import StopRequest, stop_requests


@dataclass(frozen=True)
class TrainResult:
    """What a finished fine-tune was."""

    steps: int
    trained_tokens: int
    seconds: float
    """In the loop, over all resumed parts."""
    final_loss: float | None
    """Nats per target of the last step."""
    adapter_dir: Path
    peak_memory_bytes: int
    """Of one process."""


def train_stage(
    checkpoint: Checkpoint,
    table: RopeTable,
    packed_dir: Path,
    config: TrainConfig,
    *,
    positions: str,
    target_length: int,
    dtype: str,
    seed: int,
    run_dir: Path,
    reporter: Reporter,
) -> TrainResult:
    """Fine-tune into `run_dir/adapter`, in as many processes as `config` says; skips what holds.

    Raises:
        InvalidInput: packed data, targets or trackers cannot be used.
        UsageError: the windows of a step cannot be shared by the processes.
        Interrupted: a signal came; a checkpoint is saved.
        GiraffeError: the loss is no number (its documents are named), or a worker failed.
    """
    job = TrainJob(
        checkpoint, table, packed_dir, config, positions, target_length, dtype, seed, run_dir
    )
    if not stage_holds(job.adapter_dir, job.identity(open_packed(packed_dir).digest)):
        processes = parallel.choose_processes(config, parallel.visible_gpus(), reporter)
        if processes > 1:
            parallel.launch(job.to_json(), run_dir, processes, reporter)
        else:
            train(job, reporter)
    return TrainResult(**read_json(job.summary_path), adapter_dir=job.adapter_dir)


def train(job: TrainJob, reporter: Reporter, stop_file: Path | None = None) -> None:
    """This process's part of the fine-tune; the first process writes what `job` names.

    Raises:
        Interrupted: a signal or `stop_file` came; a checkpoint is saved.
        GiraffeError: the loss or the gradient is no number.
    """
    run = open_run(job, reporter)
    config, state = job.config, run.state
    devices = [run.accelerator.device] if run.accelerator.device.type == "cuda" else []
    with (
        contextlib.closing(run),
        torch.random.fork_rng(devices),
        recorder(run) as record,
        reporter.bar("training", config.steps, "steps", done=state.step) as bar,
        stop_requests(stop_file) as stop,
    ):
        while state.step < config.steps:
            # ── one step ─────────────────────────────────────────────────────────────────────
            started = time.monotonic()
            rate = learning_rate(state.step, config)
            outcome = train_step(run, rate, stop)
            seconds = time.monotonic() - started
            state.advance(run.stream, outcome.num_tokens, outcome.loss, seconds)

            # ── tell ─────────────────────────────────────────────────────────────────────────
            speed = outcome.num_tokens / seconds
            record(
                step=state.step,
                loss=outcome.loss,
                grad_norm=outcome.grad_norm,
                learning_rate=rate,
                tokens=state.trained_tokens,
                tokens_per_second=speed,
                seconds=state.seconds,
            )
            bar.advance(1, loss=f"{outcome.loss:.4f}", **{"tokens/s": f"{speed:,.0f}"})

            # ── keep ─────────────────────────────────────────────────────────────────────────
            is_last = state.step == config.steps
            if is_last or outcome.must_stop or state.step % config.checkpoint_every == 0:
                run.save()
            if outcome.must_stop and not is_last:
                raise Interrupted(
                    f"stopped after step {state.step} of {config.steps}; a checkpoint is saved",
                    "run the same command again to resume",
                )
        run.write_adapter()


@dataclass(frozen=True)
class StepOutcome:
    """What a step did; equal in every process."""

    loss: float
    """Mean nats over the targets of all windows of the step."""
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    must_stop: bool


def train_step(run: Run, rate: float, stop: StopRequest) -> StepOutcome:
    """Move the adapter once, by all windows of the step in all processes.

    Raises:
        GiraffeError: loss or gradient are no numbers; the documents are named, nothing is moved.
    """
    accelerator, config = run.accelerator, run.job.config
    rank, processes = accelerator.process_index, accelerator.num_processes

    # ── targets of the whole step first: what every window's loss is divided by ──────────────
    windows = list(run.stream.of_step(run.state.step, rank, processes))
    counts = [sum(w.num_targets for w in windows), sum(w.input_ids.numel() for w in windows)]
    counted = accelerator.reduce(torch.tensor(counts, device=accelerator.device), "sum")
    num_targets, num_tokens = counted.tolist()

    # ── forward and backward, window by window ───────────────────────────────────────────────
    told = torch.zeros(config.windows_per_step + 1, dtype=torch.float64, device=accelerator.device)
    for place, window in enumerate(windows):
        last = place == len(windows) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            nats = window_nats(run.model, window, accelerator.device)
            # processes average their gradients, while the loss is a sum over their windows
            accelerator.backward(nats * (processes / num_targets))
        told[rank + place * processes] = nats.detach()
    grad_norm = float(accelerator.clip_grad_norm_(run.parameters.values(), config.clip_norm))

    # ── one exchange: every window's loss, and whether any process must stop ─────────────────
    told[-1] = stop.requested
    *sums, stops = accelerator.reduce(told, "sum").tolist()
    loss = sum(sums) / num_targets
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise GiraffeError(
            f"step {run.state.step + 1}: loss {loss:g}, gradient norm {grad_norm:g}, from "
            f"documents {_suspects(run, sums)}",
            "lower train.learning_rate, or look at these documents",
        )

    # ── move ─────────────────────────────────────────────────────────────────────────────────
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return StepOutcome(loss, grad_norm, num_tokens, bool(stops))


def _suspects(run: Run, sums: list[float]) -> str:
    """The documents of the windows whose loss is no number, of all windows when each loss is."""
    first = run.state.step * len(sums)
    broken = [n for n, nats in enumerate(sums) if not math.isfinite(nats)]
    chosen = broken or range(len(sums))
    names = {name for n in chosen for name in run.stream.build(first + n).doc_ids}
    return ", ".join(f"`{name}`" for name in sorted(names))
