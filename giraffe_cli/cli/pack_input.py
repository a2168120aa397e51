"""What `giraffe pack-data` makes of its options: the config, the shard, the tokenizer's folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import InvalidInput, UsageError, raise_together

if TYPE_CHECKING:
    from giraffe_cli.config.pack import PackConfig

_SHARD = re.compile(r"([1-9]\d*)/([1-9]\d*)")


def shard_of(shard: str | None, merge: bool, report: bool, workers: int) -> tuple[int, int] | None:
    """`2/8` → (2, 8).

    Raises:
        UsageError: no such shard, or options that contradict each other.
    """
    if merge and workers > 1:
        raise UsageError("--merge tokenises nothing: --workers has no effect", "leave it out")
    if shard is None:
        return None
    if merge or report:
        raise UsageError(
            f"--shard goes without {'--merge' if merge else '--report'}",
            "run every --shard first, then --merge",
        )
    match = _SHARD.fullmatch(shard)
    if not match or int(match[1]) > int(match[2]):
        raise UsageError(
            f"--shard {shard} is no part of a whole", "write --shard 2/8 for the 2nd of 8"
        )
    return int(match[1]), int(match[2])


def weights_of(entries: list[str]) -> dict[str, float]:
    """`books=3` → {"books": 3.0}; a source's own name may hold `=`.

    Raises:
        UsageError: no weight, or a source named twice.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        name, separator, text = entry.rpartition("=")
        try:
            weight = float(text)
        except ValueError:
            separator = ""
        if not separator or not name:
            raise UsageError(f"--mix {entry}: no NAME=WEIGHT", "write --mix books=3")
        if name in weights:
            raise UsageError(f"--mix names {name} twice", "give each source one weight")
        weights[name] = weight
    return weights


def pack_config(values: dict[str, Any]) -> PackConfig:
    """The `pack` section from flags.

    Raises:
        InvalidInput: a value out of range; the flag is named.
    """
    from pydantic import ValidationError

    from giraffe_cli.config.pack import PackConfig

    flag_of = {"token_budget": "tokens"}
    try:
        return PackConfig(**values)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            key = str(entry["loc"][0])
            flag = flag_of.get(key, key).replace("_", "-")
            message = entry["msg"].removeprefix("Value error, ")
            problems.append(f"--{flag} {entry['input']}: {message}")
        raise_together(problems, "pack-data")
        raise


def tokenizer_folder(named: str, scratch: Path) -> Path:
    """The folder with `tokenizer.json`: as named, or of the checkpoint that is named."""
    path = Path(named)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix != ".gguf":
        raise InvalidInput(f"--tokenizer {named} is a file", "name the directory that holds it")
    from giraffe_cli.checkpoint import inspect

    return inspect(named, scratch).path
