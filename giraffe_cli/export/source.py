"""What is exported: a model directory with the rotary table that its `config.json` means.

The config decides, because it is what every other runtime reads; a `rope.json` beside it must say
the same table, or the directory is not what giraffe wrote.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.checkpoint_config import Shape, read_shape
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import FloatArray
from giraffe_cli.rope.readings import (
    claimed_table,
    describe,
    read_as_transformers_5,
    switches,
)
from giraffe_cli.rundir import read_json


@dataclass(frozen=True)
class Source:
    """An opened model directory."""

    checkpoint: Checkpoint
    config: dict[str, Any]
    """`config.json`."""
    name: str
    """What people call it: the run's or the directory's name."""
    rope_theta: float
    inv_freq: FloatArray
    """`[head_dim/2]` radians per token."""
    attention_factor: float
    context_length: int
    """The window it reaches, in tokens."""

    def divisors(self) -> FloatArray:
        """`[head_dim/2]` θ^(-2i/d) over `inv_freq`: 1 where a pair is not scaled."""
        head_dim = self.checkpoint.head_dim
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        return np.asarray(self.rope_theta**-exponents / self.inv_freq, dtype=np.float64)

    @property
    def scaled(self) -> bool:
        """False when every divisor is exactly 1, so that θ alone says the table."""
        return bool(np.any(self.divisors().astype(np.float32) != 1))

    @property
    def shape(self) -> Shape:
        """The sizes."""
        return read_shape(self.config, self.checkpoint.path)


def open_source(source: str) -> Source:
    """Open a model directory, a run directory (its `model/`), a Hugging Face id or `calf`.

    Raises:
        InvalidInput: no Llama that can be read, or a table that is not one table.
    """
    path, name = _model_directory(source)
    if Path(path).suffix.lower() == ".gguf":
        raise InvalidInput(f"{path} is a GGUF file already", "name a model directory")
    checkpoint = inspect(path, Path(path))
    config = read_json(checkpoint.path / "config.json")
    reading = read_as_transformers_5(config)
    inv_freq, attention_factor = _table(checkpoint.path, config, reading)
    rope = checkpoint.existing_rope
    return Source(
        checkpoint=checkpoint,
        config=config,
        name=name,
        rope_theta=float(reading["rope_theta"]),
        inv_freq=inv_freq,
        attention_factor=attention_factor,
        context_length=int(rope["target_length"]) if rope else checkpoint.native_length,
    )


def _model_directory(source: str) -> tuple[str, str]:
    """`(what to open, its name)`; of a run directory, `model/` under the run's name."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return source, Path(source).name
    name = path.resolve().name
    if (path / "config.json").is_file():
        in_run = name == "model" and (path.resolve().parent / "run.yaml").is_file()
        return str(path), path.resolve().parent.name if in_run else name
    if not (path / "run.yaml").is_file():
        raise InvalidInput(
            f"{path} is neither a model nor a run: it has no config.json and no run.yaml",
            "name a Hugging Face checkpoint directory, or one that `giraffe extend` wrote",
        )
    if not (path / "model" / "config.json").is_file():
        merging = f"run giraffe merge {shlex.quote(str(path))}"
        raise InvalidInput(f"{path} has no finished model", merging)
    return str(path / "model"), name


def _table(
    folder: Path, config: Mapping[str, Any], reading: Mapping[str, Any]
) -> tuple[FloatArray, float]:
    if switches(reading):
        raise InvalidInput(
            f"{folder} has {describe(reading)}, whose table changes with the length of the text; "
            "an export holds one table",
            "extend its unscaled base with `giraffe extend`, which writes one table",
        )
    try:
        claimed = claimed_table(config)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InvalidInput(
            f"the table of {folder} cannot be computed: {type(error).__name__} {error}",
            f"run giraffe verify {folder}",
        ) from error
    if claimed is None:
        raise InvalidInput(f"{folder} has rope_type {reading['rope_type']}, which is not known")
    return claimed
