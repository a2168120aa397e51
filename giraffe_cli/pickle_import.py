"""Pickled weights (`pytorch_model.bin`) become safetensors, once, when the user allows it.

A pickle is a program. It is read by torch's restricted reader (`weights_only`), which builds
tensors and refuses everything else, and only under `--allow-pickle`: the reader is a guard, no
proof, and files of strangers are better converted on a machine that holds nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import (
    atomic_open,
    begin_stage,
    digest_file,
    finish_stage,
    read_json,
    stage_holds,
)
from giraffe_cli.weights import INDEX, SINGLE, plain_names

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = f"{PICKLED}.index.json"
COMPANIONS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "LICENSE*", "NOTICE*")
_CONVERT = "convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"


def has_only_pickled(folder: Path) -> bool:
    """Whether the weights of a checkpoint directory are pickled and nothing else."""
    safe = (folder / SINGLE).exists() or (folder / INDEX).exists()
    return not safe and ((folder / PICKLED).exists() or (folder / PICKLED_INDEX).exists())


def import_pickled(folder: Path, out: Path) -> Path:
    """Write `out`: the checkpoint `folder` with its weights as one safetensors file; skipped where
    it holds. Memory: the weights.

    Raises:
        InvalidInput: a shard is missing or damaged, or holds anything but tensors.
        GiraffeError: `out` cannot be written.
    """
    shards = _shards(folder)
    inputs = {"pickled": {path.name: digest_file(path) for path in shards}}
    if stage_holds(out, inputs):
        return out
    begin_stage(out)
    tensors: dict[str, Any] = {}
    for path in shards:
        tensors |= _tensors(path)
    _write(tensors, out / SINGLE)
    for pattern in COMPANIONS:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.name != PICKLED_INDEX:
                with open(path, "rb") as reader, atomic_open(out / path.name) as writer:
                    shutil.copyfileobj(reader, writer)
    finish_stage(out, inputs)
    return out


def _shards(folder: Path) -> list[Path]:
    if not (folder / PICKLED_INDEX).exists():
        return [folder / PICKLED]
    shards = [folder / name for name in plain_names(read_json(folder / PICKLED_INDEX), folder)]
    for path in shards:
        if not path.is_file():
            raise InvalidInput(f"{path} is missing", "download the weights again")
    return shards


def _tensors(path: Path) -> dict[str, Any]:
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign pickle makes of the reader
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"{path} cannot be read as tensors alone: {reason}",
            "do not trust it: download the safetensors, or ask its author for them",
        ) from error
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        for name, tensor in found.items()
    ):
        raise InvalidInput(f"{path} holds something else than named tensors", _CONVERT)
    return dict(found)


def _write(tensors: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save

    # a copy each: safetensors stores no tensor under two names
    whole = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_open(path) as handle:
        handle.write(save(whole, metadata={"format": "pt"}))
