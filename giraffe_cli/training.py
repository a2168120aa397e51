"""The fine-tune of a run, stage by stage: one adapter, trained for one rising target after another.

    stages/1-16k/   packed (unless another stage's windows are the same), checkpoints, adapter,
                    weights.safetensors, metrics.jsonl, training.json, rope.json
    .               the last stage: the run's own adapter, rope.json and metrics.jsonl

Stage k starts from the weights that stage k-1 ended with, with a fresh optimiser and schedule,
under a table of its own that scales the same base. A run of one stage has no `stages/`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.corpus.packed_facts import attention_share
from giraffe_cli.errors import UsageError
from giraffe_cli.fitting import Fit, as_begun, read_levers
from giraffe_cli.model.precision import computed_in
from giraffe_cli.plan.estimate import Pace, check_fits
from giraffe_cli.plan.machine import Machine
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.run_files import stage_folders
from giraffe_cli.rundir import MANIFEST, make_folder, write_sealed
from giraffe_cli.stages import Timings, choose_table, make_plan, packed_folder
from giraffe_cli.train.checkpoints import saved_steps
from giraffe_cli.train.crew import Crew
from giraffe_cli.train.loop import TrainResult, train_stage
from giraffe_cli.train.packed_checks import check_packed, tell_passes
from giraffe_cli.units import format_length


@dataclass(frozen=True)
class TrainingStage:
    """One target of a run, and where its fine-tune is kept."""

    config: ExtendConfig
    """As of a run of this stage alone."""
    table: RopeTable
    folder: Path
    seed: int
    """Of windows and positions; stages that share windows see them in different orders."""
    name: str
    """`16k`, or `control of 16k`."""

    @property
    def windows_key(self) -> tuple[Any, ...]:
        """What decides the packed windows; the rest of the packing is the run's."""
        return tuple(self.config.data), self.config.window


def training_stages(
    config: ExtendConfig, checkpoint: Checkpoint, run_dir: Path
) -> list[TrainingStage]:
    """The stages of `config`, first to last; the last one's folder is `run_dir` itself.

    Raises:
        InvalidInput: as `choose_table`, of any stage.
    """
    configs = config.stage_configs()
    folders = stage_folders(run_dir, [stage.target_length for stage in configs])
    return [
        TrainingStage(
            stage,
            choose_table(stage, checkpoint),
            folder,
            config.seed + number,
            format_length(stage.target_length),
        )
        for number, (stage, folder) in enumerate(zip(configs, folders, strict=True))
    ]


def plan_stages(
    stages: Sequence[TrainingStage],
    checkpoint: Checkpoint,
    controls: Sequence[TrainingStage] = (),
    machine: Machine | None = None,
    pace: Pace | None = None,
) -> dict[str, Any]:
    """`plan.json`: the plan of the last stage with the steps of all and the estimate of the one
    that needs most memory; each stage's own under `stages`, the control's under `control`.
    On `machine` at `pace`, else here. Raises as `as_begun`."""
    plans, of_controls = (
        [
            make_plan(
                as_begun(stage.config, stage.folder, checkpoint),
                *(checkpoint, stage.table, machine, pace, read_levers(stage.folder)),
            )
            for stage in group
        ]
        for group in (stages, controls)
    )
    largest = max([*plans, *of_controls], key=lambda plan: int(plan["estimate"]["bytes"]["total"]))
    return {
        **plans[-1],
        "steps": sum(plan["steps"] for plan in plans),
        "estimate": largest["estimate"],
        "stages": [_of_stage(plan) for plan in plans],
        "control": [_of_stage(plan) for plan in of_controls],
    }


def refuse_what_does_not_fit(the_plan: dict[str, Any]) -> None:
    """Before anything is loaded.

    Raises:
        DoesNotFit: a stage of `the_plan`, or of its control, has no setting that fits.
    """
    for stage in (*the_plan["stages"], *the_plan["control"]):
        check_fits(stage["estimate"])


def _of_stage(plan: dict[str, Any]) -> dict[str, Any]:
    """Without what all stages have in common."""
    of_run = ("model", "native_length", "dtype", "files")
    return {key: value for key, value in plan.items() if key not in of_run}


def pack_stages(
    stages: Sequence[TrainingStage],
    checkpoint: Checkpoint,
    reporter: Reporter,
    controls: Sequence[TrainingStage] = (),
) -> dict[Path, Path]:
    """Each stage's folder → that of its windows.

    Stages with the same corpora and window share one: the run's own, if the last of `stages` is
    among them.

    Raises:
        InvalidInput: as `packed_folder` and `check_packed`, of any stage.
    """
    owners: dict[tuple[Any, ...], TrainingStage] = {}
    for stage in (stages[-1], *stages[:-1], *controls):
        owners.setdefault(stage.windows_key, stage)
    folders = {
        key: packed_folder(owner.config, checkpoint, owner.folder, reporter)
        for key, owner in owners.items()
    }
    packed = {stage.folder: folders[stage.windows_key] for stage in (*stages, *controls)}
    for stage in (*stages, *controls):
        if stage.config.trains:
            check_packed(packed[stage.folder], stage.config.train, checkpoint.native_length)
    return packed


def check_can_finish(config: ExtendConfig, run_dir: Path) -> None:
    """Before anything is opened.

    Raises:
        UsageError: the last stage of the run in `run_dir` has no checkpoint, or an earlier one
            goes on.
    """
    if not config.trains:
        raise UsageError("--finish: with --steps 0 nothing is trained", "leave --finish out")
    folders = stage_folders(run_dir, [stage.target_length for stage in config.stage_configs()])
    for folder in folders:
        is_done = (folder / "adapter" / MANIFEST).is_file()
        if not (is_done or (folder == run_dir and saved_steps(folder / "checkpoints"))):
            what = "no checkpoint" if folder == run_dir else "an earlier stage that has not ended"
            raise UsageError(
                f"--finish: {run_dir} has {what}",
                "run the command without it: --finish ends a run's last training, after a step of "
                "it that was saved (train.checkpoint_every)",
            )


def _evaluated_of_held_out(config: ExtendConfig) -> int:
    """How many held-out documents the evaluation takes; none when it has texts of its own."""
    return 0 if config.eval.data else config.eval.documents


def train_stages(
    stages: Sequence[TrainingStage],
    packed: Mapping[Path, Path],
    checkpoint: Checkpoint,
    timings: Timings,
    reporter: Reporter,
    label: str = "train",
    crew: Crew | None = None,
    is_control: bool = False,
    finish: bool = False,
) -> list[TrainResult]:
    """Every stage in turn, on the nodes of `crew` where there are several; finished ones are
    skipped, and with `finish` the last one ends at its newest checkpoint. Raises as `train_stage`
    does.

    `label` is what the time of a single stage is kept under.
    """
    results, slower = list[TrainResult](), None
    for number, stage in enumerate(stages, start=1):
        if len(stages) > 1:
            reporter.info(f"training {stage.name}, stage {number} of {len(stages)}")
        write_sealed(make_folder(stage.folder) / "rope.json", stage.table.to_json())
        if not (finish or (stage.folder / "adapter" / MANIFEST).is_file()):
            tell_passes(packed[stage.folder], stage.config.train, reporter)
        name = f"train {stage.name}" if len(stages) > 1 else label
        with timings.stage(name):
            start = functools.partial(
                train_stage,
                checkpoint,
                stage.table,
                packed[stage.folder],
                stage.config.train,
                positions=stage.config.positions,
                target_length=stage.config.target_length,
                dtype=computed_in(stage.config.dtype, checkpoint.dtype),
                seed=stage.seed,
                run_dir=stage.folder,
                reporter=reporter,
                start_from=stages[number - 2].folder if number > 1 else None,
                hands_on=number < len(stages),
                may_end=number == len(stages) and not is_control,
                ends_now=finish and number == len(stages),
                evaluated_documents=_evaluated_of_held_out(stage.config),
                crew=crew,
            )
            whole = stage.config.train.across_documents
            share = 1.0 if whole else attention_share(packed[stage.folder])
            fit = Fit(checkpoint, stage.config, stage.folder, reporter, share, slower)
            results.append(fit.train(start))
            slower = fit.measured_over_assumed(results[-1])
        timings.at_least(name, results[-1].seconds)
    return results
