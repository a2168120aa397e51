"""What a `config.json` says, in either generation of transformers' keys.

v4 wrote `rope_theta` and `rope_scaling` at the top, v5 writes one `rope_parameters`; where both are
present `rope_scaling` wins, as in transformers 5 itself. `rope.json` beside it marks a directory
that giraffe wrote and tells its native window even where the config is a plain θ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.rope.base import Head, RopeTable, make_table
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.rope.malformed import is_length, is_number, partial_rotation
from giraffe_cli.rope.readings import (
    ORIGINAL,
    TOLERANCE,
    claimed_table,
    read_as_transformers_5,
)
from giraffe_cli.rundir import read_json

_LARGEST = 1 << 48
"""No size of a Llama comes near it; a larger one is damage."""
_LONGEST = 1 << 31
"""Tokens: what files of runtimes can say."""
_LARGEST_THETA = 3e38
"""What float32 holds: runtimes and files store θ in it."""
_DEFAULT_THETA = 10000.0
"""What transformers takes for Llama when a config names no θ."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    head_dim: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool


@dataclass(frozen=True)
class RopeFacts:
    """θ and window before any scaling, and the scaling in force (with its `target_length`)."""

    rope_theta: float
    native_length: int
    existing: dict[str, Any] | None
    base_table: tuple[float, ...] | None = None
    """`[head_dim/2]` inv_freq of the scaling in force, at the length it reaches; None without
    scaling, or for a type whose table is not known here."""
    base_attention_factor: float = 1.0


def read_shape(config: Mapping[str, Any], path: Path) -> Shape:
    """The sizes; `head_dim` and `num_key_value_heads` default as in transformers.

    Raises:
        InvalidInput: another architecture, quantised weights, or a size that is missing or odd.
    """
    architectures = _words(config.get("architectures"))
    if config.get("model_type") != "llama" or "LlamaForCausalLM" not in architectures:
        raise InvalidInput(
            f"{path} is a {', '.join(architectures) or 'model'} of type "
            f"`{config.get('model_type')}`, needs LlamaForCausalLM of type `llama`",
            "giraffe extends Llama architectures only",
        )
    if config.get("quantization_config"):
        raise InvalidInput(f"{path} has quantised weights", "start from the unquantised model")
    _check_sizes(config, path)
    heads = config["num_attention_heads"]
    return Shape(
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        vocab_size=config["vocab_size"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def check_stock(config: Mapping[str, Any], path: Path) -> None:
    """The model is what transformers' own class makes of it: no code of a stranger's is run.

    Raises:
        InvalidInput: the config names code of its own, which may compute something else, or heads
            that turn in part.
    """
    raise_together(list(partial_rotation(config)), f"{path / 'config.json'}")
    if config.get("auto_map"):
        raise InvalidInput(
            f"{path / 'config.json'} has auto_map: the model has code of its own, which is not run",
            "where transformers' LlamaForCausalLM computes the same, remove auto_map from a copy",
        )


def _check_sizes(config: Mapping[str, Any], path: Path) -> None:
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
    )
    optional = ("head_dim", "num_key_value_heads")
    problems = [*_other_problems(config)] + [
        f"{name} is {config.get(name)!r}, needs a positive integer"
        for name in (*needed, *(name for name in optional if config.get(name) is not None))
        if not _is_size(config.get(name))
    ]
    if not problems:
        head_dim = config.get("head_dim") or config["hidden_size"] / config["num_attention_heads"]
        if head_dim < 4 or head_dim % 2:
            problems.append(f"head_dim is {head_dim:g}, needs an even integer of at least 4")
    raise_together(problems, f"{path / 'config.json'}")


def _words(value: Any) -> list[str]:
    """The strings of a list; what is none is shown as it is."""
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _other_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Fields that are no sizes and that no library survives when they are wrong."""
    epsilon, activation = config.get("rms_norm_eps", 1e-6), config.get("hidden_act", "silu")
    if not is_number(epsilon) or not 0 <= epsilon < 1:
        yield f"rms_norm_eps is {epsilon!r}, needs a number from 0 to 1"
    if activation != "silu":
        yield f"hidden_act is {activation!r}, needs silu"
    for key in ("dtype", "torch_dtype"):
        if config.get(key) not in (None, "auto", "float32", "bfloat16", "float16", "float64"):
            yield f"{key} is {config[key]!r}, needs the name of a float type"


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST


def read_rope(config: Mapping[str, Any], path: Path) -> RopeFacts:
    """θ, native window and existing scaling.

    Raises:
        InvalidInput: RoPE fields that are no numbers or no mapping; a damaged `rope.json`.
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise InvalidInput(f"{path / 'config.json'} has RoPE fields that are no mapping: {rope!r}")
    named = [of["rope_theta"] for of in (rope, config) if "rope_theta" in of]
    theta = next(
        (value for value in named if value is not None), named[0] if named else _DEFAULT_THETA
    )
    if not is_number(theta) or not 1 < theta < _LARGEST_THETA:
        raise InvalidInput(f"{path / 'config.json'} has rope_theta {theta!r}, needs a number > 1")
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(rope_type, str):
        raise InvalidInput(f"{path / 'config.json'} has rope_type {rope_type!r}, needs its name")
    if (path / ROPE_FILE).exists():
        return _from_rope_file(path / ROPE_FILE, config)
    reach = config["max_position_embeddings"]
    if rope_type == "default":
        return RopeFacts(float(theta), reach, None)
    native, reach = _scaled_window(rope_type, rope, config, path)
    existing = {**rope, "rope_type": rope_type, "rope_theta": theta, "target_length": reach}
    return RopeFacts(
        float(theta), native, existing, *_table_in_force(config, existing, native, path)
    )


def _table_in_force(
    config: Mapping[str, Any], existing: Mapping[str, Any], native: int, path: Path
) -> tuple[tuple[float, ...] | None, float]:
    """`(inv_freq, attention factor)` of the base at the length its scaling reaches, from `native`.

    Raises:
        InvalidInput: the fields of its type are incomplete or no numbers.
    """
    try:
        if existing["rope_type"] == "dynamic":
            head_dim = config.get("head_dim") or (
                config["hidden_size"] // config["num_attention_heads"]
            )
            head = Head(head_dim, float(existing["rope_theta"]), native, existing["target_length"])
            if head.factor <= 1:
                return tuple(head.unscaled_inv_freq()), 1.0
            factor = float(existing["factor"])
            return make_table("dynamic", {"factor": factor}, head).inv_freq, 1.0
        claimed = claimed_table(config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidInput(
            f"{path / 'config.json'} has a {existing['rope_type']} scaling that cannot be computed "
            f"({type(error).__name__}: {error})",
            f"giraffe verify {path} names what is wrong",
        ) from error
    if claimed is None:
        return None, 1.0
    return tuple(float(value) for value in claimed[0]), float(claimed[1])


def _scaled_window(
    rope_type: str, rope: Mapping[str, Any], config: Mapping[str, Any], path: Path
) -> tuple[int, int]:
    """`(native, reach)`. `linear` and `dynamic` configs name the native window and are served at
    factor times it; the other types name the reach, and the native window inside the dict. Where
    that is the same (Qwen's cards) or absent, `yarn` is served at factor times it, too."""
    window: int = config["max_position_embeddings"]
    native = rope.get(ORIGINAL) or config.get(ORIGINAL)
    if native is not None and not is_length(native):
        raise InvalidInput(f"{path / 'config.json'} has {ORIGINAL} {native!r}, needs an integer")
    if native and (rope_type != "yarn" or native < window):
        return native, window
    if rope_type not in ("linear", "dynamic", "yarn"):
        return window, window
    factor, native = rope.get("factor", 1), native or window
    if not is_number(factor) or not 1 <= native * factor <= _LONGEST:
        raise InvalidInput(f"{path / 'config.json'} has a scaling factor {factor!r}")
    return native, int(native * factor)


def _from_rope_file(file: Path, config: Mapping[str, Any]) -> RopeFacts:
    """What giraffe wrote of its table, where the config beside it says the same table.

    Raises:
        InvalidInput: it says another; the file is damaged.
    """
    table = RopeTable.from_json(read_json(file))
    if not _says(config, table):
        raise InvalidInput(
            f"{file} and config.json beside it say different tables: the scaling was lost, or "
            f"{file.name} is another model's",
            f"giraffe verify {file.parent} shows what the config should say; of a model that "
            f"giraffe did not write, remove {file.name}",
        )
    existing = {**table.rope_parameters, "target_length": table.target_length}
    native = table.original_max_position_embeddings
    return RopeFacts(table.rope_theta, native, existing, table.inv_freq, table.attention_factor)


def _says(config: Mapping[str, Any], table: RopeTable) -> bool:
    """Whether the fields of `config` give `table`, both computed here."""
    if read_as_transformers_5(config)["rope_type"] != table.rope_parameters.get("rope_type"):
        return False
    try:
        claimed = claimed_table(config)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return False
    if claimed is None:  # of `dynamic` the fields are all there is
        return True
    theirs, ours = [*claimed[0], claimed[1]], [*table.inv_freq, table.attention_factor]
    return len(theirs) == len(ours) and bool(np.allclose(theirs, ours, rtol=TOLERANCE, atol=0))
