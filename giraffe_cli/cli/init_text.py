"""A config as a commented YAML file: each knob under its documentation from `config`.

    # Peak learning rate of AdamW.
    # Here: that of configs/smollm2-135m-16k.yaml
    learning_rate: 0.0002
    #schedule: cosine

A line that begins with `#` and a word is a knob at its default, to be switched on by deleting `#`;
prose begins with `# `.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from giraffe_cli.config.extend import ExtendConfig

SHOWN: dict[str, tuple[str, ...]] = {
    "": ("model", "data", "target_length", "dtype", "seed", "rope", "pack", "train", "eval"),
    "rope": ("strategy", "knobs", "on_existing"),
    "pack": (
        *("hold_out", "rule", "short_mix", "mix", "lookups"),
        *("min_doc_len", "dedupe", "decontaminate"),
    ),
    "train": (
        *("steps", "window", "windows_per_step", "learning_rate", "warmup_steps", "schedule"),
        *("method", "lora", "quantize_base", "optimizer", "checkpointing", "offload", "control"),
        *("held_out_every", "keep", "checkpoint_every", "processes", "sequence_parallel"),
    ),
    "train.lora": ("rank", "alpha", "dropout", "targets", "also_train"),
    "eval": ("suite", "lengths", "documents", "data", "gates"),
}
"""The knobs that a first config shows, by section; the others are named at the section's end, and
any that has a value is shown as well."""
WIDTH = 98


def commented(values: Mapping[str, Any], reasons: Mapping[str, str], heading: list[str]) -> str:
    """The file: `heading`, then every shown knob, those of `values` in force."""
    lines = [f"# {line}".rstrip() for line in heading]
    lines += ["", *_section(ExtendConfig, values, reasons, "", 0)]
    return "\n".join(lines) + "\n"


def _section(
    kind: type[BaseModel],
    values: Mapping[str, Any],
    reasons: Mapping[str, str],
    path: str,
    depth: int,
) -> Iterator[str]:
    indent = "  " * depth
    if not values:  # YAML reads a section without a line as null
        values = {SHOWN[path][0]: _default(kind.model_fields[SHOWN[path][0]])}
    shown = [*SHOWN[path], *(name for name in values if name not in SHOWN[path])]
    for name in shown:
        field, key = kind.model_fields[name], f"{path}.{name}".lstrip(".")
        nested = key in SHOWN
        if nested and not path:
            yield ""
        yield from _prose(field.description or "", indent)
        if key in reasons:
            yield from _prose(f"Here: {reasons[key]}", indent)
        if nested:
            section = field.annotation
            assert isinstance(section, type)
            assert issubclass(section, BaseModel)
            yield f"{indent}{name}:"
            yield from _section(section, values.get(name, {}), reasons, key, depth + 1)
        else:
            mark = "" if name in values else "#"
            value = values[name] if name in values else _default(field)
            yield f"{indent}{mark}{name}: {_yaml(value)}"
    others = [name for name in kind.model_fields if name not in shown]
    if others:
        yield from _prose(f"Also: {', '.join(others)}.", indent)


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _prose(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(
        " ".join(text.split()), WIDTH, initial_indent=prefix, subsequent_indent=prefix
    )


def _yaml(value: Any) -> str:
    """One line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
