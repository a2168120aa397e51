"""YAML from people and from strangers: plain values, of a size that can be looked at.

`yaml.safe_load` makes no objects, but an alias of an alias of an alias writes a billion values in
ten lines, and one inside itself has no end.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import yaml

from giraffe_cli.units import brief

MOST_VALUES = 1_000_000


def parse_yaml(text: str) -> Any:
    """The value of `text`: mappings with text for keys, lists, finite numbers, texts, truths, null.

    Raises:
        ValueError: no YAML, anything else than such values, or more than a million with every
            alias written out.
    """
    try:
        value = yaml.load(text, _Loader)  # noqa: S506: a safe loader's child
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    _check_plain(value)
    return value


class _Loader(yaml.SafeLoader):
    """Numbers as in YAML 1.2: `8:32` is no 512, `0100` no 64, and `8e6` one; a key stands once."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:int"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = sorted(key for key, count in keys.items() if count > 1)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {brief(repr(twice[0]))} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), "-+0123456789"
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    "-+0123456789",
)


def _check_plain(value: Any) -> None:
    left, seen = [value], 0
    while left:
        entry = left.pop()
        seen += 1
        if seen > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
        if isinstance(entry, dict):
            for key in entry:
                if not isinstance(key, str):
                    raise ValueError(f"the key {brief(repr(key))} is no text; put it in quotes")
            left += entry.values()
        elif isinstance(entry, list):
            left += entry
        elif entry is not None and not isinstance(entry, str | int | float):
            raise ValueError(f"{type(entry).__name__} {entry!r} is no plain value; quote it")
        elif isinstance(entry, float) and not math.isfinite(entry):
            raise ValueError(f"{entry} is not finite")  # JSON could not hold it
