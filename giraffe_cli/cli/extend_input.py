"""What `giraffe extend` makes of its options: preset, file, flags and `--set`, in that order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.config.building import apply_overrides, put
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_yaml
from giraffe_cli.presets import config_path
from giraffe_cli.units import format_length, parse_length

PRESET_TARGET = "16k"


def gather(
    config_file: Path | None, flags: dict[str, Any], assignments: list[str]
) -> dict[str, Any]:
    """Defaults < preset of the embedded model < `--config` < flags < `--set`, the last of which
    holds."""
    values: dict[str, Any] = read_yaml(config_path(config_file)) if config_file else {}
    if not config_file and flags.get("model", EMBEDDED) == EMBEDDED:
        last = flags["stages"][-1] if "stages" in flags else None
        other = {"rope.strategy", "stages"} & {*flags, *(a.split("=")[0] for a in assignments)}
        values = embedded_preset(flags.get("target_length", last), other_table=bool(other))
    for path, value in flags.items():
        put(values, path, value)
    return apply_overrides(values, assignments)


def embedded_preset(target_length: str | None, other_table: bool = False) -> dict[str, Any]:
    """The settings that suit the embedded default, those of `configs/calf-16k.yaml`.

    The knobs of its table hold for its strategy and target alone, in one stage; a target shorter
    than their training window is trained in full windows.
    """
    values = read_yaml(Path(__file__).parent.parent / "calf" / "extend.yaml")
    train, target = values["train"], parse_length(target_length or PRESET_TARGET)
    if target < parse_length(train["window"]):
        train["window"] = target_length
    if other_table or target != parse_length(PRESET_TARGET):
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


def default_run_dir(config: ExtendConfig) -> Path:
    """`runs/<model>-<target>`."""
    name = Path(config.model).name.removesuffix(".gguf")
    return Path("runs") / f"{name}-{format_length(config.target_length)}"
