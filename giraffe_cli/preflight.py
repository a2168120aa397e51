"""All that a run looks at before it packs: the run and its dry run are refused the same things.

    start = preflight(config, run_dir, work_dir, evaluates=True)
    start.checkpoint, start.stages, start.controls, start.evaluation

A check that needs neither packed windows nor a loaded model belongs here, and nowhere else: what
one call finds is told at once. Memory is not looked at: a plan is shown before it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.claim import check_base, check_cache, check_claim, check_masks, dtype_as_begun
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.control import control_stages
from giraffe_cli.corpus.pack_knobs import check_knobs, check_shares
from giraffe_cli.corpus.store import is_packed
from giraffe_cli.errors import Problems, UsageError
from giraffe_cli.evals.chosen import check_tasks
from giraffe_cli.evals.harness import check_harness
from giraffe_cli.evaluating import EvaluationInputs, check_control, foresee, open_inputs
from giraffe_cli.merge_checks import check_stored_head
from giraffe_cli.model.low_bits import check_low_bits
from giraffe_cli.model.precision import computed_in
from giraffe_cli.model.targets import check_adapter
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.stages import check_sources
from giraffe_cli.train.parallel import choose_processes, visible_gpus
from giraffe_cli.train.patience import check_patience
from giraffe_cli.train.sharing import check_heads, check_keys, check_recorded
from giraffe_cli.train.short_context import check_short_context
from giraffe_cli.train.trackers import check_trackers
from giraffe_cli.training import TrainingStage, training_stages


@dataclass(frozen=True)
class Start:
    """What was opened on the way, for a run that may begin."""

    config: ExtendConfig
    """As given, with the type that is computed in."""
    checkpoint: Checkpoint
    requested_dtype: str
    """As given: an evaluator is computed in what that makes of its own."""
    stages: list[TrainingStage] = field(default_factory=list)
    """None where the base reaches the target already, and that is allowed."""
    controls: list[TrainingStage] = field(default_factory=list)
    """One for each of `stages`, or none."""
    evaluation: EvaluationInputs | None = None
    """None where nothing is evaluated."""


def preflight(
    config: ExtendConfig,
    run_dir: Path,
    work_dir: Path,
    reporter: Reporter,
    *,
    evaluates: bool = True,
    allow_native: bool = False,
    reads_all: bool = True,
    strict: bool = False,
) -> Start:
    """Look at all that a run of `config` in `run_dir` needs; nothing is written there.

    Args:
        work_dir: where a base or an evaluator in another format is converted.
        evaluates: whether the run ends with an evaluation.
        allow_native: a base that reaches the target is no error; then nothing else is looked at.
        reads_all: else standard input and the Hub are not read for the evaluation.
        strict: whether a script goes by the gates; then there must be some.

    Raises:
        InvalidInput, UsageError: something cannot be used; all of it is told at once.
    """
    problems = Problems()
    checkpoint = problems.note(inspect, config.model, work_dir, config.allow_pickle)
    if checkpoint and allow_native and checkpoint.reach >= config.target_length:
        return Start(config, checkpoint, config.dtype)
    _check_folder(config, run_dir, checkpoint, problems)
    requested = config.dtype
    if checkpoint:
        config = _with_dtype(config, checkpoint, run_dir, reporter)
    stages, controls = _stages(config, checkpoint, run_dir, problems)
    configs = [stage.config for stage in (*stages, *controls)] or config.stage_configs()
    _check_training(configs, config.trains, checkpoint, problems)
    for stage in config.stage_configs():
        problems.note(check_sources, stage, checkpoint)
    for trained in (*stages, *controls):
        problems.note(_check_packing, trained)
    evaluation = None
    if strict and not evaluates:
        problems.note(_refuse_untested)
    if evaluates and config.eval.cache:
        problems.note(check_cache, Path(config.eval.cache))
    if evaluates:
        native = stages[-1].table.original_max_position_embeddings if stages else None
        evaluation = _evaluation(config, checkpoint, native, work_dir, reads_all, strict, problems)
    problems.settle()
    assert checkpoint
    _tell_without_effect(config, checkpoint, reporter)
    return Start(config, checkpoint, requested, stages, controls, evaluation)


def _check_folder(
    config: ExtendConfig, run_dir: Path, checkpoint: Checkpoint | None, problems: Problems
) -> None:
    """The folder is this config's, and what was trained in it began with this base."""
    is_own = problems.note(check_claim, config, run_dir) is not None
    if is_own and checkpoint:
        problems.note(check_base, run_dir, checkpoint)
        problems.note(check_masks, config, run_dir, checkpoint)


def _check_packing(stage: TrainingStage) -> None:
    """Windows of this length can be packed by the config's knobs."""
    if any(is_packed(Path(source)) for source in stage.config.data):
        return
    try:
        check_knobs(stage.config.pack, stage.config.window)
        if not is_packed(stage.folder / "packed"):
            check_shares(stage.config.pack)
    except UsageError as error:
        raise UsageError(f"{stage.name}: {error.message}", error.hint) from error


def _with_dtype(
    config: ExtendConfig, checkpoint: Checkpoint, run_dir: Path, reporter: Reporter
) -> ExtendConfig:
    """`config` with the type that its run computes in: as it began, else what suits here."""
    wanted = dtype_as_begun(run_dir) if config.dtype == "auto" else config.dtype
    dtype = computed_in(wanted or "auto", checkpoint.dtype, reporter)
    return config.model_copy(update={"dtype": dtype})


def _stages(
    config: ExtendConfig, checkpoint: Checkpoint | None, run_dir: Path, problems: Problems
) -> tuple[list[TrainingStage], list[TrainingStage]]:
    """The stages and their controls; empty where the base or the config does not allow them."""
    if checkpoint is None:
        return [], []
    stages = problems.note(training_stages, config, checkpoint, run_dir) or []
    controls = problems.note(control_stages, stages, checkpoint, run_dir) if stages else []
    return stages, controls or []


def _check_training(
    configs: Sequence[ExtendConfig], trains: bool, checkpoint: Checkpoint | None, problems: Problems
) -> None:
    """Libraries, processes, and what they share of a window; `configs` are of single stages."""
    for config in configs:
        train = config.train
        problems.note(check_low_bits, train)
        if trains:
            visible = train.nodes * visible_gpus()
            problems.note(choose_processes, train, visible, SilentReporter())
            problems.note(check_patience, train)
            for name in train.trackers:
                problems.note(check_trackers, [name])
        if trains and checkpoint:
            _check_model(train, checkpoint, config.dtype, problems)
            problems.note(check_short_context, train, config.window, checkpoint.native_length)


def _check_model(
    train: TrainConfig, checkpoint: Checkpoint, dtype: str, problems: Problems
) -> None:
    """What is trained of this checkpoint, and how its attention is shared and kept."""
    dropout = checkpoint.attention_dropout
    problems.note(check_stored_head, checkpoint)
    problems.note(check_heads, checkpoint.num_attention_heads, train)
    problems.note(check_keys, train, dropout, dtype, visible_gpus() > 0)
    problems.note(check_recorded, train, dropout)
    problems.note(check_adapter, checkpoint.path, train)


def _refuse_untested() -> None:
    raise UsageError(
        "--strict has nothing to test: --no-eval skips the evaluation", "leave one of them out"
    )


def _evaluation(
    config: ExtendConfig,
    checkpoint: Checkpoint | None,
    native_length: int | None,
    work_dir: Path,
    reads_all: bool,
    strict: bool,
    problems: Problems,
) -> EvaluationInputs:
    """Tasks by their names, corpora and evaluator; samples and gates where all of that is there,
    and it is known what is extended."""
    known = len(problems.found)
    problems.note(check_tasks, config.eval)
    problems.note(check_harness, config.eval.harness)
    inputs = open_inputs(config, work_dir, reads_all, problems)
    if checkpoint and native_length:
        problems.note(check_control, config, native_length)
        if len(problems.found) == known:
            problems.note(foresee, config, checkpoint, inputs, native_length, strict)
    return inputs


def _tell_without_effect(config: ExtendConfig, checkpoint: Checkpoint, reporter: Reporter) -> None:
    if config.rope.on_existing != "refuse" and checkpoint.existing_rope is None:
        reporter.warn(
            f"--on-existing-rope {config.rope.on_existing} has no effect: "
            f"{checkpoint.source} is not scaled"
        )
