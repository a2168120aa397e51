"""Configs as YAML files, plain or sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from giraffe_cli.errors import InvalidInput
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.rundir import altered, atomic_open, digest_bytes, seal


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; plain data only.

    Raises:
        InvalidInput: missing, not YAML, or not a mapping.
    """
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInput(f"cannot read config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"config {path} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"config {path} holds no mapping", "write `key: value` lines")
    return value


def write_sealed_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """`values` with the digest of the text as its last line, a comment; see `read_sealed_yaml`."""
    text = yaml.safe_dump(dict(values), sort_keys=False)
    with atomic_open(path, "w") as handle:
        handle.write(f"{text}# {seal(digest_bytes(text.encode()))}\n")


def read_sealed_yaml(path: Path) -> dict[str, Any]:
    """What `write_sealed_yaml` wrote, as `read_yaml` gives it.

    Raises:
        InvalidInput: missing, no YAML mapping, or altered since.
    """
    values = read_yaml(path)
    text, mark, stated = path.read_text(encoding="utf-8").rpartition("# ")
    if not mark or not stated.startswith(seal("")):
        raise InvalidInput(
            f"{path} does not end with its seal: it was cut short or edited, or an earlier giraffe "
            "wrote it",
            "restore it from a copy, or start again in another --out",
        )
    if stated.strip() != seal(digest_bytes(text.encode())):
        raise altered(path)
    return values
