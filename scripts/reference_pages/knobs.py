"""Every knob of a config, from `giraffe_cli.config`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from markdown import page, table
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from giraffe_cli.config.extend import ExtendConfig

LEAD = """Every knob of a config file, of `--set KEY=VALUE` and of `run.yaml`, from the code that
reads them; the same as a [JSON schema](config.schema.json). `giraffe init` writes a file with those
that matter."""


def config_page() -> str:
    return page("Config", " ".join(LEAD.split()), _parts(ExtendConfig, ""))


def config_schema() -> str:
    return json.dumps(ExtendConfig.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


def _parts(kind: type[BaseModel], path: str) -> Iterator[str]:
    yield f"## {path or 'The run'}"
    yield " ".join((kind.__doc__ or "").split())
    rows, inner = [], []
    for name, field in kind.model_fields.items():
        key = f"{path}.{name}".lstrip(".")
        section = _section(field.annotation)
        if section is not None:
            inner.append((section, key))
        rows.append([f"`{key}`", _default(field, section), field.description or ""])
    yield table(["knob", "default", "what it does"], rows)
    for section, key in inner:
        yield from _parts(section, key)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_section(one) for one in getattr(annotation, "__args__", ()))
    return next((one for one in inner if one is not None), None)


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if field.is_required():
        return "required"
    if section is not None:
        return "see below"
    value = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value, ensure_ascii=False)}`"
