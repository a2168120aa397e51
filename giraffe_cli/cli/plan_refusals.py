"""What `giraffe extend` would refuse of a plan, as far as sizes, names and the machine tell it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from giraffe_cli.errors import InvalidInput, Problems, UsageError, near_misses
from giraffe_cli.progress import Reporter

if TYPE_CHECKING:
    from giraffe_cli.checkpoint import Checkpoint
    from giraffe_cli.config.extend import ExtendConfig
    from giraffe_cli.plan.machine import Machine


def refusals(checkpoint: Checkpoint, config: ExtendConfig, machine: Machine) -> list[str]:
    """Of base, table, positions, adapter, packed windows and what processes share, each with its
    hint; an empty list where it runs."""
    from giraffe_cli.stages import given_windows
    from giraffe_cli.train.patience import check_patience
    from giraffe_cli.train.sharing import check_heads, check_keys, check_recorded
    from giraffe_cli.train.short_context import check_short_context
    from giraffe_cli.training import training_stages

    problems, dropout = Problems(), checkpoint.attention_dropout
    problems.note(training_stages, config, checkpoint, Path())
    for stage in config.stage_configs() if config.trains else []:
        train = stage.train
        problems.note(given_windows, stage, checkpoint)
        problems.note(check_patience, train)
        problems.note(check_heads, checkpoint.num_attention_heads, train)
        problems.note(check_keys, train, dropout, stage.dtype, machine.kind == "cuda")
        problems.note(check_recorded, train, dropout)
        problems.note(check_short_context, train, stage.window, checkpoint.native_length)
        if train.method == "lora":
            problems.note(_check_names, checkpoint, train.lora.targets)
    return [": ".join(filter(None, (one.message, one.hint))) for one in problems.found]


def cautions(checkpoint: Checkpoint, config: ExtendConfig, factors: Path | None) -> list[str]:
    """Of divisors that were searched for another target or base."""
    from giraffe_cli.tune.searched import searched_for_another

    composes = config.rope.on_existing == "compose"
    extended = checkpoint.reach if composes else checkpoint.native_length
    given = factors or config.rope.knobs.get("factors")
    digest = checkpoint.digest if checkpoint.path.is_dir() else None
    theta = checkpoint.rope_theta
    return searched_for_another(given, config.target_length, theta, extended, digest)


def refuse_corpus(source: str | None) -> None:
    """A plan reads packed windows alone.

    Raises:
        UsageError: `source` is something else.
    """
    from giraffe_cli.corpus.store import is_packed

    if source is not None and not is_packed(Path(source)):
        raise UsageError(
            f"--data {source}: a plan reads packed windows alone",
            "leave it out: windows of one document take longest; or giraffe pack-data, or giraffe "
            "extend --dry-run",
        )


def _check_names(checkpoint: Checkpoint, targets: list[str]) -> None:
    """A layer's projections by name; a target with a path is left to the weights."""
    from giraffe_cli.plan.operations import linear_shapes

    known = linear_shapes(checkpoint)
    unknown = [target for target in targets if "." not in target and target not in known]
    if unknown:
        raise InvalidInput(
            f"`{unknown[0]}` is no linear layer that LoRA takes; {near_misses(unknown[0], known)}"
        )


def check_processes(config: ExtendConfig, machine: Machine, reporter: Reporter) -> None:
    """Every stage's processes find their GPUs; GPUs that idle are warned of.

    Raises:
        UsageError: the windows of a step cannot be shared so, or there are fewer GPUs: memory and
            time of such a plan would be of no machine.
    """
    from giraffe_cli.train.parallel import choose_processes

    for train in [stage.train for stage in config.stage_configs()] if config.trains else []:
        there = machine.devices * train.nodes if machine.kind == "cuda" else 0
        wanted = train.processes or train.sequence_parallel
        if 0 < there < wanted and not train.share_devices:
            raise UsageError(
                f"{wanted} processes need as many GPUs, the plan is for {there}",
                f"--gpus {-(-wanted // train.nodes)}",
            )
        choose_processes(train, there, reporter)
