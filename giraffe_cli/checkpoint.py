"""Open a checkpoint: what it is, and whether it can be extended.

`inspect` reads configs and safetensors headers only (no torch for Hugging Face directories) and
refuses with a reason.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_config import check_stock, read_rope, read_shape
from giraffe_cli.checkpoint_files import (
    check_settings,
    check_tokenizer,
    checkpoint_digest,
    read_config,
)
from giraffe_cli.checkpoint_source import checkpoint_folder
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import Head
from giraffe_cli.rope.readings import ORIGINAL
from giraffe_cli.weights import check_tensors, count_parameters, dtype_of, read_weights


@dataclass(frozen=True)
class Checkpoint:
    """The facts of a checkpoint that can be used; lengths in tokens."""

    source: str
    """What the user named."""
    path: Path
    """A local Hugging Face directory."""
    digest: str
    """sha256 over config, tokenizer and weight files."""
    head_dim: int
    rope_theta: float
    native_length: int
    """Window before any scaling."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    dtype: str
    """`float32`, `bfloat16` or `float16`: what the weight files hold; where they hold several, the
    one that transformers loads them in."""
    num_parameters: int
    existing_rope: dict[str, Any] | None
    """The scaling that is already in force, with the `target_length` it reaches; None without."""
    base_table: tuple[float, ...] | None = None
    """`[head_dim/2]` inv_freq of that scaling; None without, or when its type is not known."""
    base_attention_factor: float = 1.0
    """What that scaling multiplies cos and sin by."""
    attention_dropout: float = 0.0
    """Of attention weights in training, as its config.json says."""

    def to_json(self) -> dict[str, Any]:
        """All fields, the path as text, absolute."""
        return {**dataclasses.asdict(self), "path": str(self.path.absolute())}

    @property
    def reach(self) -> int:
        """The window the checkpoint has now: native, or what its scaling makes of it."""
        return (
            int(self.existing_rope["target_length"]) if self.existing_rope else self.native_length
        )

    def head(self, target_length: int, on_existing: str = "replace") -> Head:
        """The rotary shape, to reach `target_length`; of a scaled base as if it were not
        (`replace`), or with its own table and the window it has now (`compose`).

        Raises:
            InvalidInput: the table to compose with is not known.
        """
        plain = Head(self.head_dim, self.rope_theta, self.native_length, target_length)
        if self.existing_rope is None or on_existing != "compose":
            return plain
        if self.base_table is None:
            raise InvalidInput(
                f"{self.source} has rope_type `{self.existing_rope['rope_type']}`, whose table is "
                "not known here",
                "pass --on-existing-rope replace, or extend its unscaled base",
            )
        return dataclasses.replace(
            plain,
            original_max_position_embeddings=self.reach,
            base_table=self.base_table,
            base_attention_factor=self.base_attention_factor,
        )


def inspect(source: str, work_dir: Path, allow_pickle: bool | None = None) -> Checkpoint:
    """Open `source`: a local directory, a `.gguf` file, a Hugging Face id, or `calf`.

    A GGUF is converted into `work_dir/base`, and so are pickled weights under `allow_pickle`, which
    is None where the user cannot say so.

    Raises:
        InvalidInput: not found, not a Llama, damaged weights, weights that are pickled, files that
            differ from the manifest beside them, links that lead out, code of its own, no or a
            foreign tokenizer.
    """
    path = checkpoint_folder(source, work_dir, allow_pickle)
    config = read_config(path)
    shape, rope = read_shape(config, path), read_rope(config, path)
    check_stock(config, path)
    weights = read_weights(path)
    check_tensors(path, shape, weights, config)
    check_tokenizer(path, shape.vocab_size)
    check_settings(path)
    return Checkpoint(
        source=source,
        path=path,
        digest=checkpoint_digest(path),
        rope_theta=rope.rope_theta,
        native_length=rope.native_length,
        existing_rope=rope.existing,
        base_table=rope.base_table,
        base_attention_factor=rope.base_attention_factor,
        dtype=dtype_of(weights, config),
        num_parameters=count_parameters(shape, weights),
        attention_dropout=_dropout(config.get("attention_dropout"), path),
        **dataclasses.asdict(shape),
    )


def _dropout(value: Any, path: Path) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise InvalidInput(f"{path}: attention_dropout is {value!r}", "needs a number from 0 to 1")
    return float(value)


def head_to_extend(
    checkpoint: Checkpoint, target_length: int, on_existing: str, or_pass: str = ""
) -> Head:
    """What a strategy is applied to: `head`, once the window and the existing scaling allow it.

    `compose` scales the real table of a scaled base beyond the real window; `replace` puts the
    strategy in the place of its scaling, over the native window. `or_pass` is an option of the
    caller that accepts a base which reaches the target, for the hint.

    Raises:
        InvalidInput: the base reaches the target, or is scaled and `on_existing` is `refuse`.
    """
    window = checkpoint.native_length if on_existing == "replace" else checkpoint.reach
    if target_length <= window:
        raise InvalidInput(
            f"{checkpoint.source} already reaches {window} tokens, the target is {target_length}",
            "choose a longer --target-len"
            + (f", or pass {or_pass} to accept the base as it is" if or_pass else "")
            + _if_misread(checkpoint),
        )
    if on_existing == "refuse":
        refuse_scaled(checkpoint, target_length)
    return checkpoint.head(target_length, on_existing)


def _if_misread(checkpoint: Checkpoint) -> str:
    """The other reading of a config that names one window: some name the window they reach, where
    transformers and vLLM take the window before scaling."""
    rope = checkpoint.existing_rope or {}
    if rope.get("rope_type") not in ("linear", "dynamic", "yarn") or ORIGINAL in rope:
        return ""
    return (
        f"; if max_position_embeddings {checkpoint.native_length} is the window with its scaling, "
        f"write the one without as `{ORIGINAL}` into the rope_scaling of a copy's config.json"
    )


def refuse_scaled(checkpoint: Checkpoint, target_length: int) -> None:
    """Scaling on top of scaling multiplies factors that were never meant to meet.

    Raises:
        InvalidInput: the checkpoint's RoPE is scaled already; the hint gives both ways on.
    """
    rope, native, reach = checkpoint.existing_rope, checkpoint.native_length, checkpoint.reach
    if rope is None:
        return
    raise InvalidInput(
        f"{checkpoint.source} is already scaled: rope_type `{rope['rope_type']}` takes its "
        f"{native} native tokens to {reach}, and scaling on top of scaling must be meant",
        f"add `--on-existing-rope compose` to stretch that table from {reach} to {target_length}, "
        f"or `--on-existing-rope replace` to scale from the native {native} anew (the weights must "
        "then unlearn the old table); best of all, extend the unscaled base",
    )
