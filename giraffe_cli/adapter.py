"""What a run trained, as a change of each tensor of its base: one mechanism for every kind.

A folder in PEFT's format holds LoRA matrices, with DoRA's magnitudes or without, and modules that
were trained whole; one of `method: full` holds every tensor (`model/full.py`).

    adapter key  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight   [r, in]
    base tensor                   model.layers.0.self_attn.q_proj.weight          [out, in]

Only headers are read until a change is wanted. What a folder holds beyond these kinds is refused by
name, because merging would drop it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.full import TRAINED_CONFIG, TRAINED_WEIGHTS
from giraffe_cli.rope.malformed import is_number
from giraffe_cli.rundir import check_whole, digest_file, digest_value, read_json
from giraffe_cli.tensor_dtypes import DTYPES
from giraffe_cli.tensor_stream import TensorInFile, tensors_in_file
from giraffe_cli.updates import AbstractUpdate, DoraUpdate, LoraUpdate, Replacement
from giraffe_cli.weights import ADAPTER_CONFIG

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|magnitude_vector)(?:\.weight)?")
_TRAIN_AGAIN = "train it again"


@dataclass(frozen=True)
class Change:
    """The change of one tensor of the base."""

    shape: tuple[int, ...]
    """Of the tensor it changes."""
    load: Callable[[], AbstractUpdate]
    """Reads what is needed to apply it."""

    def equals(self, other: Change) -> bool:
        """Whether both put the same bytes in place of their tensor."""
        ours, theirs = self.load(), other.load()
        if not (isinstance(ours, Replacement) and isinstance(theirs, Replacement)):
            return False
        return ours.tensor.equals(theirs.tensor)


def is_full(folder: Path) -> bool:
    """Whether `folder` holds every tensor of a model, and no adapter."""
    return (folder / TRAINED_CONFIG).is_file()


def read_adapter(folder: Path) -> dict[str, Change]:
    """The changes that `folder` holds, keyed by the tensor of the base.

    Raises:
        InvalidInput: files are missing, damaged or not as a manifest beside them says; the adapter
            holds what none of these kinds contains.
    """
    check_whole(folder)
    if is_full(folder):
        return _read_full(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    refuse_other_kinds(config)
    parts: dict[str, dict[str, TensorInFile]] = {}
    changes: dict[str, Change] = {}
    for key, tensor in _tensors(folder / ADAPTER_WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        if match := _PART.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        elif name == key or "lora_" in name or not _is_whole(name, config):
            raise InvalidInput(
                f"the adapter holds `{key}`, which is no LoRA matrix and no module of its "
                "modules_to_save",
                "merge it with PEFT's merge_and_unload",
            )
        else:
            changes[name] = _replaced(tensor)
    _check_whole(config, changes)
    return changes | {
        f"{name}.weight": _adapted(name, part, config) for name, part in parts.items()
    }


def _read_full(folder: Path) -> dict[str, Change]:
    tensors = _tensors(folder / TRAINED_WEIGHTS)
    number = read_json(folder / TRAINED_CONFIG).get("tensors")
    if len(tensors) != number:
        raise InvalidInput(
            f"{folder / TRAINED_WEIGHTS} holds {len(tensors)} tensors, {TRAINED_CONFIG} says "
            f"{number}",
            _TRAIN_AGAIN,
        )
    return {name: _replaced(tensor) for name, tensor in tensors.items()}


def _tensors(path: Path) -> dict[str, TensorInFile]:
    try:
        found = tensors_in_file(path)
    except InvalidInput as error:
        raise InvalidInput(f"{path} cannot be read: {error.message}", _TRAIN_AGAIN) from error
    odd = sorted(name for name, tensor in found.items() if tensor.entry.dtype not in DTYPES)
    if odd:
        raise InvalidInput(f"{path} holds {odd[0]} in {found[odd[0]].entry.dtype}", _TRAIN_AGAIN)
    return found


def _replaced(tensor: TensorInFile) -> Change:
    return Change(tensor.entry.shape, lambda: Replacement(tensor))


def _adapted(module: str, parts: dict[str, TensorInFile], config: dict[str, Any]) -> Change:
    """Scaling as PEFT computes it: alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
    shapes = {part: tensor.entry.shape for part, tensor in parts.items()}
    if not {"A", "B"} <= set(parts) or shapes["A"][0] != shapes["B"][1]:
        listed = {f"lora_{part}": list(shape) for part, shape in shapes.items()}
        raise InvalidInput(f"the LoRA matrices of {module} do not pair up: {listed}")
    if bool(config.get("use_dora")) != ("magnitude_vector" in parts):
        raise InvalidInput(
            f"use_dora is {config.get('use_dora')}, the magnitudes of {module} are "
            f"{'there' if 'magnitude_vector' in parts else 'missing'}",
            _TRAIN_AGAIN,
        )
    rank = shapes["A"][0]
    scaling = _alpha(module, config) / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Change((shapes["B"][0], shapes["A"][1]), lambda: _load(parts, scaling))


def _alpha(module: str, config: dict[str, Any]) -> float:
    """`lora_alpha`, or what the first pattern of `alpha_pattern` says that ends the module's name,
    as PEFT's `get_pattern_key` matches it. (Ranks of `rank_pattern` stand in the shapes.)"""
    patterns = config.get("alpha_pattern") or {}
    try:
        found = (key for key in patterns if re.match(rf"(.*\.)?({key})$", module))
        alpha = patterns.get(next(found, module), config.get("lora_alpha"))
    except (re.error, AttributeError, TypeError) as error:
        raise InvalidInput(
            f"the adapter has alpha_pattern = {patterns!r}, which cannot be read: {error}",
            _TRAIN_AGAIN,
        ) from error
    if not is_number(alpha):
        told = f"the adapter has lora_alpha {alpha!r} for {module}, needs a number"
        raise InvalidInput(told, _TRAIN_AGAIN)
    return alpha


def _load(parts: dict[str, TensorInFile], scaling: float) -> AbstractUpdate:
    tensors = {part: _read(tensor) for part, tensor in parts.items()}
    lora = LoraUpdate(tensors["A"], tensors["B"], scaling)
    return DoraUpdate(lora, tensors["magnitude_vector"]) if len(tensors) == 3 else lora


def _read(tensor: TensorInFile) -> torch.Tensor:
    data = tensor.read_rows(0, tensor.entry.shape[0])
    values = torch.frombuffer(data, dtype=DTYPES[tensor.entry.dtype])
    return values.reshape(tensor.entry.shape).to(torch.float32)


def _is_whole(name: str, config: dict[str, Any]) -> bool:
    """Whether PEFT trained the module of tensor `name` whole: it matches ends of names, and adds
    the head where it is tied."""
    module = name.rpartition(".")[0]
    saved = config.get("modules_to_save") or []
    tied = bool(config.get("ensure_weight_tying")) and module == "lm_head"
    return tied or any(module.endswith(entry) for entry in saved)


def _check_whole(config: dict[str, Any], changes: dict[str, Change]) -> None:
    for entry in config.get("modules_to_save") or []:
        if not any(name.rpartition(".")[0].endswith(entry) for name in changes):
            raise InvalidInput(
                f"the adapter has modules_to_save = {config['modules_to_save']!r}, and no tensor "
                f"of `{entry}`",
                _TRAIN_AGAIN,
            )


def refuse_other_kinds(config: dict[str, Any]) -> None:
    """Name every setting whose effect the updates here do not contain.

    Raises:
        InvalidInput: there is one.
    """
    allowed: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "lora_bias": (False, None),
        "fan_in_fan_out": (False, None),
        "trainable_token_indices": ([], {}, None),
        "layer_replication": ([], None),
        # aLoRA: in force behind its tokens alone, which no merged weight can be
        "alora_invocation_tokens": (None,),
        # PiSSA, OLoRA and their kin as PEFT saves them belong to base weights they have changed.
        "init_lora_weights": (True, False, "gaussian", "orthogonal", None),
    }
    for key, values in allowed.items():
        if config.get(key) not in values:
            raise InvalidInput(
                f"the adapter has {key} = {config.get(key)!r}, which LoRA, DoRA and modules "
                "trained whole do not contain",
                "merge it with PEFT's merge_and_unload",
            )


def adapter_digest(folder: Path) -> str:
    """The identity of what was trained: its tensors and its settings."""
    weights, settings = (
        (TRAINED_WEIGHTS, TRAINED_CONFIG) if is_full(folder) else (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
    )
    return digest_value([digest_file(folder / weights), read_json(folder / settings)])
