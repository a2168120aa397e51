"""The fine-tune, read top to bottom.

    restore → [ step → measure? → record → checkpoint? → stop? ]* → adapter

Invariant: every random draw is a function of (seed, window number) and every counter is part of
the state. So two processes repeat the losses of one, and a run that is killed anywhere ends in the
same bytes (on CPU, at a fixed thread count).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.store import open_packed
from giraffe_cli.errors import GiraffeError, Interrupted, InvalidInput, not_finite
from giraffe_cli.model.finite import is_finite
from giraffe_cli.model.levers import Levers
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import read_json, read_kept, stage_holds
from giraffe_cli.train import determinism, parallel
from giraffe_cli.train.checkpoints import saved_steps
from giraffe_cli.train.crew import Crew
from giraffe_cli.train.gradients import any_of
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.memory_errors import memory_errors_told
from giraffe_cli.train.opening import open_run
from giraffe_cli.train.run import Run, recorder
from giraffe_cli.train.same_inputs import check_inputs
from giraffe_cli.train.schedule import learning_rate
from giraffe_cli.train.sharing import check_heads
from giraffe_cli.train.short_context import check_short_context
from giraffe_cli.train.signals import stop_requests
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.step import train_step
from giraffe_cli.train.telling import first_step, live_fields, metrics


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
    adapter_step: int | None = None
    """The step whose weights the adapter holds."""
    stopped_early: bool = False
    """Whether `patience` ended the run before its last step."""
    cut_short: bool = False
    """Whether it was asked to end at a checkpoint before its last step."""
    bad_steps: int = 0
    """Steps that moved nothing, because their loss or gradient was no number."""
    held_out_nll: float | None = None
    """Nats per target on the held-out windows: of the adapter where it was measured, else of the
    last measurement before it."""


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
    planned_seconds_per_step: float | None = None,
    start_from: Path | None = None,
    hands_on: bool = False,
    levers: Levers | None = None,
    may_end: bool = False,
    ends_now: bool = False,
    evaluated_documents: int = 0,
    crew: Crew | None = None,
) -> TrainResult:
    """Fine-tune into `run_dir/adapter`, in as many processes as `config` says; skips what holds.
    `crew` are the nodes of a run on several.

    `start_from` is the run folder of a stage that was trained with `hands_on`: the weights start
    where it ended, the optimiser and the schedule anew. `ends_now` takes no further step: what the
    newest checkpoint holds is the end.

    Raises:
        InvalidInput: packed data, targets or trackers cannot be used, heads cannot be shared, there
            is no checkpoint to end at, or the folder was trained on other inputs.
        UsageError: the windows of a step cannot be shared by the processes.
        Interrupted: a signal came; a checkpoint is saved.
        GiraffeError: too many losses in a row are no numbers (their documents are named), or a
            worker failed.
    """
    job = TrainJob(
        checkpoint=checkpoint,
        table=table,
        packed_dir=packed_dir,
        config=config,
        positions=positions,
        target_length=target_length,
        dtype=dtype,
        seed=seed,
        run_dir=run_dir,
        planned_seconds_per_step=planned_seconds_per_step,
        start_from=start_from,
        hands_on=hands_on,
        levers=levers or Levers.asked_for(config),
        may_end=may_end,
        ends_now=ends_now,
        evaluated_documents=evaluated_documents,
    )
    check_heads(checkpoint.num_attention_heads, config)
    check_short_context(config, job.window, checkpoint.native_length)
    digest = open_packed(packed_dir).digest
    check_inputs(job, digest)
    whole = stage_holds(job.adapter_dir, job.identity(digest))
    summary = read_kept(job.summary_path)
    if not whole or summary is None or (hands_on and not job.weights_path.exists()):
        assert (crew is not None) == (config.nodes > 1)
        visible = config.nodes * parallel.visible_gpus()
        processes = parallel.choose_processes(config, visible, reporter)
        is_repeated_on_gpu = config.deterministic and parallel.visible_gpus() > 0
        if processes > 1 or is_repeated_on_gpu:
            variables = determinism.ENVIRONMENT if is_repeated_on_gpu else None
            request = job.to_json()
            parallel.launch(request, run_dir, processes, reporter, environment=variables, crew=crew)
        else:
            with determinism.repeatable(config.deterministic):
                train(job, reporter)
    return TrainResult(**read_json(job.summary_path), adapter_dir=job.adapter_dir)


def train(job: TrainJob, reporter: Reporter, stop_file: Path | None = None) -> None:
    """This process's part of the fine-tune; the first process writes what `job` names.

    Raises:
        Interrupted: a signal or `stop_file` came; a checkpoint is saved.
        DoesNotFit: memory ran out; FirstStepDoesNotFit: in the first step.
        GiraffeError: more than `max_bad_steps` steps in a row have a loss or a gradient that is no
            number.
    """
    run = open_run(job, reporter)
    config, state = job.config, run.state
    first, planned = state.step, job.planned_seconds_per_step
    if job.ends_now and not first:
        run.close()
        raise InvalidInput(
            f"no checkpoint in {job.checkpoints_dir} holds: there is nothing to end at",
            "run the command without --finish",
        )
    devices = [run.device] if run.device.type == "cuda" else []
    with (
        contextlib.closing(run),
        torch.random.fork_rng(devices),
        recorder(run) as record,
        reporter.bar("train", config.steps, "steps", done=state.step) as bar,
        stop_requests(stop_file) as stop,
    ):
        while not (state.is_over(config) or job.ends_now):
            # ── one step ─────────────────────────────────────────────────────────────────────
            started = time.monotonic()
            rate = learning_rate(state.step, config)
            with memory_errors_told(state.step, is_first=state.step == first):
                outcome = train_step(run, rate)
            seconds = time.monotonic() - started
            if outcome.is_bad:
                if not state.bad_steps:
                    check_base_is_finite(run)
                complaint = outcome.complaint(state.step + 1)
                state.skip(run.stream, complaint, seconds)
                reporter.warn(f"skipped {complaint}; nothing was moved")
            else:
                state.advance(run.stream, outcome.num_tokens, outcome.loss, seconds)

            # ── measure, tell ────────────────────────────────────────────────────────────────
            is_measured = is_due(state.step, config.held_out_every, config.steps)
            is_best = is_measured and run.measure()
            held_out = {"held_out_nll": state.held_out_nll} if is_measured else {}
            record(**metrics(run, outcome, rate, seconds), **held_out)
            bar.advance(1, **live_fields(run, outcome, rate, seconds, planned))
            if planned is None:  # the first step is the plan of the others
                planned = seconds
                reporter.info(first_step(seconds, config.steps - state.step))
            if len(state.bad_in_a_row) > config.max_bad_steps:
                raise too_many_bad_steps(run)

            # ── keep, stop ───────────────────────────────────────────────────────────────────
            must_stop = any_of(stop.requested, run.device)
            # in a row of bad steps there is nothing new to keep
            is_regular = state.step % config.checkpoint_every == 0 and not state.bad_in_a_row
            is_wanted = is_regular or (is_best and config.keep == "best")
            if is_wanted or must_stop or state.is_over(config):
                run.save()
                must_stop = any_of(stop.requested, run.device)
            if must_stop and not state.is_over(config):
                raise Interrupted(
                    f"stopped after step {state.step} of {config.steps}; a checkpoint is saved",
                    f"run the same command again to resume{TO_FINISH * job.may_end}",
                )
        if state.has_stopped_early(config):
            reporter.info(early_stop(state, config))
        elif not state.is_over(config):
            if config.held_out_every and state.step % config.held_out_every:
                run.measure()  # as the last step of every run is
            reporter.info(f"ended after step {state.step} of {config.steps}, as asked")
        run.write_adapter()
        if any_of(stop.requested, run.device):
            raise Interrupted(
                "stopped after the training; the adapter is written",
                "run the same command again to go on from it",
            )


TO_FINISH = ", or with --finish to end the training here and merge what it has learnt"


def early_stop(state: TrainState, config: TrainConfig) -> str:
    """Why a run ended before its last step."""
    why = "the held-out loss was never a number"
    if state.best_nll is not None:
        why = f"the held-out loss was lowest after step {state.best_step} ({state.best_nll:.4f})"
    return f"stopped early after step {state.step} of {config.steps}: {why}"


def is_due(step: int, every: int, last: int) -> bool:
    """Whether to measure after `step`: every so many steps and after the last; never for 0."""
    return every > 0 and (step % every == 0 or step == last)


def check_base_is_finite(run: Run) -> None:
    """Whether a step without a number is the base's doing, as far as this process holds it whole.

    Raises:
        InvalidInput: a weight that nothing moved holds NaN or infinities.
    """
    if run.model.base is not None:  # weights of others read as NaN
        return
    nothing_moved = run.state.step == 0
    for name, weight in run.trained.named_parameters():
        is_read = weight.is_floating_point() and (nothing_moved or not weight.requires_grad)
        if is_read and not is_finite(weight.detach()):
            raise not_finite(name.removeprefix("base_model.model.").replace(".base_layer", ""))


def too_many_bad_steps(run: Run) -> GiraffeError:
    """The end of a run whose steps keep moving nothing."""
    told, state = run.state.bad_in_a_row, run.state
    sound = [n for n in saved_steps(run.job.checkpoints_dir) if n <= state.step - len(told)]
    stands = f"the checkpoint of step {sound[0]} stands" if sound else "no checkpoint was saved"
    listed = "\n".join(f"  - {sentence}" for sentence in told)
    return GiraffeError(
        f"{len(told)} steps in a row had no number for loss or gradient and moved nothing; before "
        f"them, {stands}\n{listed}",
        "look at these documents; a lower train.learning_rate, or other text, is another run, with "
        f"another --out; this one goes past them with --set train.max_bad_steps={len(told)}, or "
        "more" + TO_FINISH * bool(sound and run.job.may_end),
    )
