"""Llamas by name, for plans without a checkpoint; sizes as in their published `config.json`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.checkpoint_config import RopeFacts, Shape, read_rope, read_shape
from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.rundir import read_json
from giraffe_cli.weights import expected_shapes

SHAPES: dict[str, tuple[Shape, str, int, float]] = {
    "llama3-8b": (Shape(128, 4096, 14336, 32, 32, 8, 128256, False), "bfloat16", 8192, 5e5),
    "llama3-70b": (Shape(128, 8192, 28672, 80, 64, 8, 128256, False), "bfloat16", 8192, 5e5),
    "llama3.1-8b": (Shape(128, 4096, 14336, 32, 32, 8, 128256, False), "bfloat16", 131072, 5e5),
    "llama3.1-70b": (Shape(128, 8192, 28672, 80, 64, 8, 128256, False), "bfloat16", 131072, 5e5),
    "llama3.2-3b": (Shape(128, 3072, 8192, 28, 24, 8, 128256, True), "bfloat16", 131072, 5e5),
    "llama3.2-1b": (Shape(64, 2048, 8192, 16, 32, 8, 128256, True), "bfloat16", 131072, 5e5),
    "llama2-13b": (Shape(128, 5120, 13824, 40, 40, 40, 32000, False), "float16", 4096, 1e4),
    "llama2-7b": (Shape(128, 4096, 11008, 32, 32, 32, 32000, False), "float16", 4096, 1e4),
    "smollm2-1.7b": (Shape(64, 2048, 8192, 24, 32, 32, 49152, True), "bfloat16", 8192, 1.3e5),
    "smollm2-360m": (Shape(64, 960, 2560, 32, 15, 5, 49152, True), "bfloat16", 8192, 1e5),
    "smollm2-135m": (Shape(64, 576, 1536, 30, 9, 3, 49152, True), "bfloat16", 8192, 1e5),
}
"""Name → sizes, stored type, window, θ."""
SCALED = {"llama3.1-8b": 8.0, "llama3.1-70b": 8.0, "llama3.2-3b": 32.0, "llama3.2-1b": 32.0}
"""Of those that are published scaled by `llama3`: the factor, over 8,192 tokens."""


def named_shape(name: str) -> Checkpoint:
    """A checkpoint's facts without a checkpoint.

    Raises:
        InvalidInput: an unknown name.
    """
    if name not in SHAPES:
        raise InvalidInput(f"no shape `{name}`", near_misses(name, SHAPES))
    shape, dtype, window, theta = SHAPES[name]
    config: dict[str, Any] = {
        "head_dim": shape.head_dim,
        "rope_theta": theta,
        "max_position_embeddings": window,
    }
    if name in SCALED:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": SCALED[name],
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return _checkpoint(shape, name, dtype, read_rope(config, Path(name)))


def shape_of_config(path: Path) -> Checkpoint:
    """The facts in a `config.json` that lies without weights; their type as `dtype` names it, else
    float32.

    Raises:
        InvalidInput: missing, no JSON object, or no Llama.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise InvalidInput(f"{path} holds no JSON object", "give a model's config.json")
    shape, rope = read_shape(config, path.parent), read_rope(config, path.parent)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return _checkpoint(shape, str(path), dtype, rope)


def _checkpoint(shape: Shape, source: str, dtype: str, rope: RopeFacts) -> Checkpoint:
    sizes: dict[str, Any] = asdict(shape)
    return Checkpoint(
        **sizes,
        source=source,
        path=Path(source),
        digest="",
        rope_theta=rope.rope_theta,
        native_length=rope.native_length,
        dtype=dtype,
        num_parameters=sum(math.prod(size) for size in expected_shapes(shape).values()),
        existing_rope=rope.existing,
        base_table=rope.base_table,
        base_attention_factor=rope.base_attention_factor,
    )
