"""What an adapter is put on: the linear layers that its targets name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import near_misses, raise_together
from giraffe_cli.model.loading import config_for

HEAD = "lm_head"
EVERY = "all-linear"
"""PEFT's word, which other tools take over."""


def check_adapter(path: Path, config: TrainConfig) -> None:
    """Refuse targets that the checkpoint at `path` has not; its weights are not read.

    Raises:
        InvalidInput: as `check_targets`, of an adapter.
    """
    if config.method == "full":
        return
    from transformers import LlamaForCausalLM

    stock = config_for(path, None)
    # No layer's name depends on it, and a type that transformers does not know stops the model.
    stock.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    with torch.device("meta"):
        model = LlamaForCausalLM(stock)
    check_targets(model, config.lora.targets)


def check_targets(model: nn.Module, targets: list[str]) -> None:
    """Every target matches a linear layer.

    Raises:
        InvalidInput: some do not, near misses named; or it is the head, whose loss is fused
            (`model/loss.py`).
    """
    names = linear_names(model)
    known = {name.rpartition(".")[2] for name in names}
    problems = [
        _why_not(target, known)
        for target in targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    raise_together(problems, "train.lora.targets")


def _why_not(target: str, known: set[str]) -> str:
    if target.rpartition(".")[2] == HEAD:
        return f"`{target}` takes no adapter: the loss multiplies by it in chunks, as it is"
    if target == EVERY:
        return f"`{EVERY}`: leave train.lora.targets out, which takes them all"
    return f"`{target}` matches no linear layer; {near_misses(target, known)}"


def linear_names(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer that may carry an adapter, by its full name; the head is not one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != HEAD
    }
