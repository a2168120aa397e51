"""What compared runs were asked for and differs, from their `run.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.config.building import differing_keys, value_at
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_yaml
from giraffe_cli.report.compare import Entry
from giraffe_cli.report.facts import value_text
from giraffe_cli.report.numbers import ABSENT

TOLD_BY_ANOTHER_ROW = ("model", "target_length", "rope.strategy", "train.steps")


def differing_settings(entries: Sequence[Entry]) -> dict[str, list[Any]]:
    """Dotted key of a config → its value in each entry; None for what an entry has not.

    A run of an earlier giraffe is held to the default of a knob that it did not know. Evaluations
    have no such settings: what differs between them bears on their scores, see `protocol.py`.

    Raises:
        InvalidInput: a `run.yaml` cannot be read.
    """
    configs = [_asked(Path(entry.path)) if entry.kind == "run" else None for entry in entries]
    known = [config for config in configs if config is not None]
    keys = sorted({key for config in known for key in differing_keys(known[0], config)})
    return {
        key: [None if config is None else value_at(config, key) for config in configs]
        for key in keys
    }


def setting_rows(settings: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[str]]]:
    """`(dotted key, one cell an entry)` for those that no other row tells."""
    return [
        (key, [_text(value) for value in values])
        for key, values in settings.items()
        if key not in TOLD_BY_ANOTHER_ROW
    ]


def _asked(path: Path) -> dict[str, Any]:
    return _over(_defaults(), read_yaml(path / "run.yaml"))


def _defaults() -> dict[str, Any]:
    """The target is the one knob without a default; every run names its own."""
    return ExtendConfig(target_length=1).model_dump(mode="json")


def _over(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and what they lack from `defaults`, section by section."""
    merged = dict(defaults) | dict(values)
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), Mapping):
            merged[key] = _over(value, values[key])
    return merged


def _text(value: Any) -> str:
    if value is None or value == {}:
        return ABSENT
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return "; ".join(_text(part) for part in value)
    return value_text(value)
