"""A job to an open run: data, devices, model and optimiser, at the newest checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.packed_facts import num_held_out
from giraffe_cli.corpus.store import PackedRows, open_packed
from giraffe_cli.model.attention import attention_in_words
from giraffe_cli.model.collectives import told_by_first
from giraffe_cli.model.pointwise import why_not_compiled
from giraffe_cli.model.trainable import causal_model, state_parameters
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.train.checkpoints import (
    clear_leftovers,
    load_weights,
    restore,
    sound_steps,
)
from giraffe_cli.train.data import Window, WindowStream
from giraffe_cli.train.gradients import lay_side_by_side, start_equal
from giraffe_cli.train.held_out import held_out_windows
from giraffe_cli.train.job import WEIGHTS, TrainJob
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.objective import make_objective
from giraffe_cli.train.optimizer import make_optimizer
from giraffe_cli.train.packed_checks import check_packed
from giraffe_cli.train.run import Run
from giraffe_cli.train.same_inputs import right_inputs
from giraffe_cli.train.schedule import decay_steps
from giraffe_cli.train.setup import (
    build_model,
    choose_kernels,
    make_accelerator,
    trainable_parameters,
)
from giraffe_cli.train.short_context import tell_compared
from giraffe_cli.train.state import TrainState
from giraffe_cli.units import counted


def open_run(job: TrainJob, reporter: Reporter) -> Run:
    """Load everything and stand where the newest checkpoint of this job left off.

    Raises:
        InvalidInput: there are no windows, or targets or trackers cannot be used.
    """
    rows, config = open_packed(job.packed_dir), job.config
    check_packed(job.packed_dir, config, job.checkpoint.native_length)
    stream, identity = open_stream(job, rows), job.identity(rows.digest)
    tell_compared(job, reporter)
    held_out = open_held_out(job, rows, stream, reporter)
    accelerator = make_accelerator(job)
    layout = Layout(
        accelerator.process_index,
        accelerator.num_processes,
        config.sequence_parallel,
        config.sequence_parallel_by,
        config.nodes,
        config.shard_base == "nodes",
    )
    model = build_model(job, layout, accelerator.device)
    dropout = causal_model(model.model).config.attention_dropout
    model.kernels, probed = choose_kernels(job, dropout, accelerator.device)
    parameters = model.held_here(trainable_parameters(model))
    kept = model.held_here(state_parameters(model))
    if job.start_from:
        load_weights(job.start_from / WEIGHTS, kept)
    lay_side_by_side(parameters.values())
    optimizer = make_optimizer(parameters, config)
    right = functools.partial(right_inputs, identity, config)
    # the first process says which: it alone looks whether they are sound
    sound = told_by_first(
        lambda: sound_steps(job.checkpoints_dir, right, config.keep == "best"),
        accelerator.is_main_process,
    )
    if accelerator.is_main_process:
        # to end at none of them is refused, and all stay where they are
        stale = clear_leftovers(job.checkpoints_dir, sound) if sound or not job.ends_now else 0
        if stale:
            told = f"removed {counted(stale, 'checkpoint')}, damaged or of other learning rates"
            reporter.warn(f"{told}: {job.checkpoints_dir}")
    newest = sound[:1]
    restored = [restore(job.checkpoints_dir, step, kept, optimizer) for step in newest]
    state = restored[0] if restored else TrainState()
    start_equal(kept.values())
    if state.step:
        reporter.info(f"resuming after step {state.step} of {config.steps}")
    attention = attention_in_words(
        config.across_documents, config.sequence_parallel, config.sequence_parallel_by
    )
    reporter.info(f"attention: {attention}; {model.levers.sentence}")
    if probed:
        reporter.info(f"attention kernels: {probed}")
    if model.levers.checkpointing != job.levers.checkpointing:
        reporter.warn(
            "attention is computed again in the backward pass: it cannot be kept under this "
            "checkpoint's dropout; training takes longer than planned"
        )
    if model.levers.fused != job.levers.fused:
        reporter.info("projections are not fused: the adapter or the checkpoint does not allow it")
    warn_of_slow_passes(accelerator.device, reporter)
    warn_of_schedule(config, reporter)
    return Run(
        job=job,
        identity=identity,
        stream=stream,
        held_out=held_out,
        accelerator=accelerator,
        layout=layout,
        model=model,
        objective=make_objective(config, job.checkpoint.native_length),
        trained=model.model,
        parameters=parameters,
        kept=kept,
        optimizer=optimizer,
        state=state,
    )


def warn_of_slow_passes(device: torch.device, reporter: Reporter) -> None:
    """Say when a GPU runs one operator after the other what it would take in one pass."""
    obstacle = why_not_compiled(device) if device.type == "cuda" else None
    if obstacle:
        reporter.warn(
            f"nothing is compiled for this GPU, a step takes longer: {obstacle.rstrip('.')}. "
            "torch.compile needs Triton, a C compiler and Python's headers"
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
    evaluated = job.evaluated_documents
    windows = held_out_windows(
        rows, stream, job.checkpoint.path, config.held_out_windows, evaluated
    )
    chooses = config.patience is not None or config.keep == "best"
    if chooses and 0 < num_held_out(rows.folder) <= evaluated:
        reporter.warn(
            f"packing held no more documents out than the {evaluated} that are evaluated: the "
            "weights are chosen on text they are scored on; raise pack.hold_out or pass --eval-data"
        )
    if len(windows) < config.held_out_windows:
        reporter.warn(
            f"measuring on {len(windows)} held-out documents, train.held_out_windows asks for "
            f"{config.held_out_windows}: packing held no more out"
        )
    return windows


def open_stream(job: TrainJob, rows: PackedRows) -> WindowStream:
    """The windows of `job`."""
    return WindowStream(
        rows=rows,
        positions=make_positions(job.positions, job.config.position_knobs),
        window=job.window,
        target_length=job.target_length,
        seed=job.seed,
        windows_per_step=job.config.windows_per_step,
        across_documents=job.config.across_documents,
    )
