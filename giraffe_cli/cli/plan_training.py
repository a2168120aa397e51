"""The plan of a training, on a machine that is here or only named, and how it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from giraffe_cli.cli.console import Console
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.units import format_bytes, format_length

if TYPE_CHECKING:
    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.plan.machine import Machine


def plan_on(machine: Machine, checkpoint: Checkpoint, config: ExtendConfig) -> dict[str, Any]:
    """The plan of every stage, and of the control's, as `--json` gives it."""
    from giraffe_cli.control import control_config
    from giraffe_cli.corpus.packed_facts import given_attention_share
    from giraffe_cli.plan.estimate import estimate
    from giraffe_cli.plan.trial import pace_of

    pace = pace_of(machine, checkpoint, config)
    stages = config.stage_configs()
    controls = [control_config(stage, checkpoint) for stage in stages if stage.train.control]

    def planned(stage: ExtendConfig) -> dict[str, Any]:
        share = given_attention_share(stage.data, stage.train.across_documents)
        return {
            "target_length": stage.target_length,
            "strategy": stage.rope.strategy,
            "positions": stage.positions,
            "estimate": estimate(checkpoint, stage, machine, pace, attention_share=share),
        }

    return {
        "model": checkpoint.source,
        "parameters": checkpoint.num_parameters,
        "stages": [planned(stage) for stage in stages],
        "control": [planned(stage) for stage in controls],
    }


def show_training(
    found: dict[str, Any],
    checkpoint: Checkpoint,
    machine: Machine,
    console: Console,
    trains: bool,
) -> None:
    """The model, the tables of every stage.

    Raises:
        DoesNotFit: one has no setting that fits.
    """
    from giraffe_cli.cli.plan_text import plan_tables
    from giraffe_cli.training import refuse_what_does_not_fit

    count = f"{machine.devices} x " if machine.devices > 1 else ""
    scaled = f", scaled to {format_length(checkpoint.reach)}" if checkpoint.existing_rope else ""
    console.info(
        f"{checkpoint.source}: {checkpoint.num_parameters / 1e9:.3g} billion parameters, "
        f"native window {format_length(checkpoint.native_length)}{scaled}; on {count}"
        f"{machine.label} with {format_bytes(machine.memory_bytes)}"
    )
    every = [*found["stages"], *found["control"]]
    if not trains:
        told = "nothing is trained: the extension is written as it is (--steps 0)"
        console.result(found, told)
        return
    console.result(found, plan_tables(every))
    refuse_what_does_not_fit(found)
