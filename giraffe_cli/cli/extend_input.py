"""What `giraffe extend` makes of its options: preset, file, flags and `--set`, in that order."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_source import EMBEDDED, checkpoint_folder, short_name
from giraffe_cli.config.building import apply_overrides, put, value_at
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_yaml
from giraffe_cli.config.stages import as_stage
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.presets import config_path
from giraffe_cli.units import format_length, parse_length

PRESET_TARGET = "16k"


def gather(
    config_file: Path | None, flags: dict[str, Any], assignments: list[str]
) -> dict[str, Any]:
    """Defaults < preset of the embedded model < `--config` < flags < `--set`, the last of which
    holds.

    Raises:
        InvalidInput: an assignment without `=`, or a path through a plain value.
        UsageError: something is given that every stage of the config sets for itself.
    """
    given = _assigned({}, flags, assignments)
    values: dict[str, Any] = {}
    if config_file:
        values = read_yaml(config_path(config_file))
    elif given.get("model", EMBEDDED) == EMBEDDED:
        values = embedded_preset(given)
    merged = _assigned(values, flags, assignments)
    _refuse_what_stages_override(given, merged.get("stages"))
    return merged


def _assigned(
    values: dict[str, Any], flags: dict[str, Any], assignments: list[str]
) -> dict[str, Any]:
    """`values` with flags and assignments put in."""
    found = copy.deepcopy(values)
    for path, value in flags.items():
        put(found, path, value)
    return apply_overrides(found, assignments)


def _refuse_what_stages_override(given: dict[str, Any], stages: Any) -> None:
    every = stages if isinstance(stages, list) and all(isinstance(s, dict) for s in stages) else []
    named = {key for stage in every for key in stage}  # null stands for the run's own
    keys = {key for key in named if all(stage.get(key) is not None for stage in every)}
    paths = {"data": "data", "strategy": "rope.strategy", "knobs": "rope.knobs"}
    for key in sorted(keys - {"target_length"}):
        path = paths.get(key, f"train.{key}")
        if value_at(given, path) is not None:
            raise UsageError(
                f"{path} has no effect: every stage of the config sets its own",
                "change the stages in the config, or name others with --stages",
            )


def embedded_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that suit the embedded default, those of `configs/calf-16k.yaml`, for what is
    `given` besides.

    The knobs of its table hold for its strategy and target alone, in one stage; a target shorter
    than their training window is trained in full windows.
    """
    values = read_yaml(Path(__file__).parent.parent / "calf" / "extend.yaml")
    train, target = values["train"], given.get("target_length")
    stages = given.get("stages")
    if target is None and isinstance(stages, list) and stages:
        last = as_stage(stages[-1])
        target = last.get("target_length") if isinstance(last, dict) else None
    tokens = parse_length(target or PRESET_TARGET)
    if tokens < parse_length(train["window"]):
        train["window"] = target
    if stages or value_at(given, "rope.strategy") or tokens != parse_length(PRESET_TARGET):
        values["rope"].pop("knobs", None)
    return values


def given_factors(factors: Path) -> dict[str, Any]:
    """`--factors` as settings: the numbers themselves, which the run keeps when the file goes.

    Raises:
        InvalidInput: the file is missing or holds no such numbers.
    """
    from giraffe_cli.rope.base import make_strategy
    from giraffe_cli.rope.knobs import knob_values

    knobs = knob_values(make_strategy("longrope", {"factors": str(factors)}))
    return {"rope.strategy": "longrope", "rope.knobs": knobs}


def cautions_of_factors(factors: Path | None, config: ExtendConfig) -> list[str]:
    """Warnings where `--factors`, or the file that a knob names, were searched for another target
    or another base, as far as a base that lies here tells."""
    from giraffe_cli.tune.searched import searched_for_another

    given = factors or config.rope.knobs.get("factors")
    if not isinstance(given, (str, Path)):
        return []
    theta, window = _rope_of(config)
    return searched_for_another(given, config.target_length, theta, window)


def _rope_of(config: ExtendConfig) -> tuple[float | None, int | None]:
    """θ of the base and the window that is extended of it; a config of it that cannot be read is
    refused later, with all else."""
    from giraffe_cli.checkpoint_config import read_rope
    from giraffe_cli.checkpoint_files import read_config

    is_embedded = config.model == EMBEDDED
    folder = checkpoint_folder(EMBEDDED, Path(), None) if is_embedded else Path(config.model)
    try:
        rope = read_rope(read_config(folder.expanduser()), folder)
    except InvalidInput:
        return None, None
    if rope.existing is not None and config.rope.on_existing == "compose":
        return rope.rope_theta, int(rope.existing["target_length"])
    return rope.rope_theta, rope.native_length


def default_run_dir(config: ExtendConfig) -> Path:
    """`runs/<model>-<target>`."""
    return Path("runs") / f"{short_name(config.model)}-{format_length(config.target_length)}"
