"""From values to a config: `--set`, defaults, and every problem told at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.errors import GiraffeError, InvalidInput, near_misses, raise_together
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.units import brief

_REQUIRED = {"target_length": "pass --target-len 16k, or write target_length into the config"}
"""Key → what helps where it is missing."""


class Problem(NamedTuple):
    """What is wrong with one value, and what helps where the problem itself knows."""

    text: str
    hint: str | None = None

    @property
    def sentence(self) -> str:
        """Both, for a list of problems."""
        return f"{self.text}; {self.hint}" if self.hint else self.text


def put(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the dotted `path` in nested `values`, making sections on the way.

    Raises:
        InvalidInput: the path leads through a plain value.
    """
    *parents, leaf = path.strip().split(".")
    target = values
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise InvalidInput(f"cannot set `{path}`: `{parent}` holds no section")
    target[leaf] = value


def value_at(values: Mapping[str, Any], path: str) -> Any:
    """What the dotted `path` leads to in nested `values`; None where it ends early."""
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def apply_overrides(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """A copy of `values` with `train.lora.rank=8` and the like set; the right side is YAML.

    Raises:
        InvalidInput: an assignment without `=`, or a path through a plain value.
    """
    merged = copy.deepcopy(values)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator or not path.strip():
            raise InvalidInput(f"--set {assignment}: no `key=value`", "write --set train.steps=60")
        try:
            put(merged, path, parse_yaml(text))
        except ValueError as error:
            raise InvalidInput(
                f"--set {assignment}: the value is not YAML: {error}",
                "write a number, a word, [a, list], or quote text",
            ) from error
    return merged


def build(values: Mapping[str, Any], subject: str = "config") -> ExtendConfig:
    """Validate `values`, reporting every problem at once.

    Raises:
        InvalidInput: unknown keys (with near misses), wrong types, values out of range.
    """
    try:
        return ExtendConfig.model_validate(dict(values))
    except ValidationError as error:
        problems = _problems(error.errors())
        if len(problems) == 1:
            raise InvalidInput(f"{subject}: {problems[0].text}", problems[0].hint) from error
        raise_together([problem.sentence for problem in problems], subject)
        raise


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings."""
    different: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            different += differing_keys(a, b, f"{prefix}{key}.")
        elif a != b:
            different.append(f"{prefix}{key}")
    return different


def resolve_dtype(requested: str, stored: str, has_bfloat16: bool = True) -> str:
    """`auto` computes in bfloat16 when the weights are stored in 16 bits and the machine multiplies
    it, else in float32."""
    if requested != "auto":
        return requested
    return "bfloat16" if stored != "float32" and has_bfloat16 else "float32"


def _problems(entries: Iterable[Any]) -> list[Problem]:
    """pydantic's errors as sentences that name the dotted key, one for each value: what may be of
    several types has an error of each."""
    told: dict[str, Problem] = {}
    for entry in entries:
        path = _path(entry["loc"])
        if entry["type"] == "extra_forbidden":
            *parents, leaf = entry["loc"]
            known = near_misses(brief(leaf), _field_names(parents))
            told[path] = Problem(f"unknown key `{path}`", known)
        elif entry["type"] == "missing":
            told[path] = Problem(f"`{path}` is required", _REQUIRED.get(path))
        else:
            message, hint = _told(entry)
            if path in told:
                message = f"{told[path].text}, or {message.removeprefix('Input should be ')}"
                told[path] = Problem(message, told[path].hint or hint)
            else:
                told[path] = Problem(f"`{path}`: {message}" if path else message, hint)
    return list(told.values())


def _told(entry: Any) -> Problem:
    """What a validator says; of one that passes on an error of ours, its hint apart."""
    raised = entry.get("ctx", {}).get("error")
    cause = getattr(raised, "__cause__", None)
    if isinstance(cause, GiraffeError):
        return Problem(cause.message, cause.hint)
    hint = None
    if entry["type"] == "list_type" and isinstance(entry["input"], str | int | float):
        hint = f"a list of one: [{brief(entry['input'])}]"
    return Problem(entry["msg"].removeprefix("Value error, "), hint)


def _path(loc: Iterable[Any]) -> str:
    """`rope.knobs.factor`, without the type that was tried: pydantic puts `float` or
    `list[float]` after it."""
    parts = [brief(part) for part in loc]
    tried = next((n for n, part in enumerate(parts) if "[" in part), len(parts))
    parts = parts[:tried]
    if parts and parts[-1] in ("float", "int", "bool", "str"):
        parts.pop()
    return ".".join(parts)


def _field_names(parents: list[Any]) -> Iterator[str]:
    section: type[BaseModel] = ExtendConfig
    for parent in parents:
        if isinstance(parent, int):  # an entry of a list of sections
            continue
        annotation = section.model_fields[str(parent)].annotation
        if get_origin(annotation) is list:
            annotation = get_args(get_args(annotation)[0])[0]
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        section = annotation
    return iter(section.model_fields)
