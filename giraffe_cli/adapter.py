"""A PEFT LoRA directory as what it does to the base: one `LoraUpdate` for each tensor it changes.

    adapter key  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [r, in]
    base tensor                   model.layers.0.self_attn.q_proj.weight          [out, in]

Whatever an adapter holds beyond plain LoRA is refused by name, because merging would drop it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rundir import digest_file, digest_value, read_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<half>[AB])\.weight")


@dataclass(frozen=True)
class LoraUpdate:
    """The change of one weight: `scaling * (up @ down)`."""

    down: torch.Tensor
    """A, `[r, in]`, float32."""
    up: torch.Tensor
    """B, `[out, r]`, float32."""
    scaling: float

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """`[out, in]` in the dtype of `weight`: one rounding, from float32."""
        change = self.scaling * (self.up @ self.down)
        return (weight.to(torch.float32) + change).to(weight.dtype)


def read_adapter(folder: Path) -> dict[str, LoraUpdate]:
    """The updates of a PEFT LoRA directory, keyed by the base tensor they change.

    Raises:
        InvalidInput: files are missing or damaged.
        GiraffeError: the adapter holds more than plain LoRA.
    """
    config = read_json(folder / "adapter_config.json")
    refuse_beyond_plain_lora(config)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InvalidInput(
            f"{folder / ADAPTER_WEIGHTS} cannot be read: {error}", "train the adapter again"
        ) from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = LORA_KEY.fullmatch(key)
        if not match:
            raise GiraffeError(
                f"the adapter holds `{key}`, which is no LoRA matrix",
                "merge it with PEFT's merge_and_unload",
            )
        halves.setdefault(match["module"], {})[match["half"]] = tensor.to(torch.float32)
    return {f"{module}.weight": _update(module, pair, config) for module, pair in halves.items()}


def _update(module: str, pair: dict[str, torch.Tensor], config: dict[str, Any]) -> LoraUpdate:
    """Scaling as PEFT computes it: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
    if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        shapes = {half: list(tensor.shape) for half, tensor in pair.items()}
        raise GiraffeError(f"the LoRA matrices of {module} do not pair up: {shapes}")
    rank = pair["A"].shape[0]
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return LoraUpdate(pair["A"], pair["B"], config["lora_alpha"] / divisor)


def refuse_beyond_plain_lora(config: dict[str, Any]) -> None:
    """Name every setting whose effect `W + scaling * (B @ A)` does not contain.

    Raises:
        GiraffeError: there is one.
    """
    allowed: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "use_dora": (False, None),
        "bias": ("none", None),
        "lora_bias": (False, None),
        "fan_in_fan_out": (False, None),
        "alpha_pattern": ({}, None),
        "modules_to_save": ([], None),
        "trainable_token_indices": ([], {}, None),
        "layer_replication": ([], None),
        # PiSSA, OLoRA and their kin change the base weights when training starts.
        "init_lora_weights": (True, False, "gaussian", "orthogonal", None),
    }
    for key, values in allowed.items():
        if config.get(key) not in values:
            raise GiraffeError(
                f"the adapter has {key} = {config.get(key)!r}, which plain LoRA does not contain",
                "merge it with PEFT's merge_and_unload",
            )


def adapter_digest(folder: Path) -> str:
    """The identity of an adapter: its matrices and its settings."""
    return digest_value(
        [digest_file(folder / ADAPTER_WEIGHTS), read_json(folder / "adapter_config.json")]
    )
