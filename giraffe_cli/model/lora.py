"""The adapter that is trained: PEFT's LoRA, with the checks PEFT leaves out.

PEFT trains silently when one of two targets is misspelt, and its adapter files carry no RoPE, so
that an adapter loaded on the unscaled base gives other logits and no error. Here every target must
match a linear layer, and `rope.json` travels inside the adapter's folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import nn

from giraffe_cli.config import LoraConfig
from giraffe_cli.errors import near_misses, raise_together
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import atomic_open, write_json

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
HEAD = "lm_head"


def add_lora(model: nn.Module, config: LoraConfig, seed: int) -> PeftModel:
    """`model` frozen, with float32 adapters on `config.targets`; the same `seed`, the same adapter.

    Raises:
        InvalidInput: a target matches no linear layer (near misses named), or is the head, whose
            loss is fused (`model/loss.py`).
    """
    _check_targets(model, config.targets)
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(model, peft_config)


def save_adapter(model: PeftModel, folder: Path, table: RopeTable, source: str) -> None:
    """Write the adapter into the existing `folder` in PEFT's format, `rope.json` beside it.

    `source` is what the user called the base model; a path of this machine's run directory would
    mean nothing elsewhere. The bytes depend on the weights alone.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    with atomic_open(folder / ADAPTER_WEIGHTS) as handle:
        handle.write(save(tensors, metadata={"format": "pt"}))
    settings = model.peft_config["default"].to_dict()
    settings.update(base_model_name_or_path=source, inference_mode=True)
    write_json(folder / ADAPTER_CONFIG, {key: _plain(value) for key, value in settings.items()})
    write_json(folder / "rope.json", table.to_json())


def linear_names(model: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer that may carry an adapter, by its full name; the head is not one."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] != HEAD
    }


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    names = linear_names(model)
    known = {name.rpartition(".")[2] for name in names}
    problems = [
        f"`{target}` matches no linear layer; {near_misses(target, known)}"
        for target in targets
        if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    raise_together(problems, "train.lora.targets")


def _plain(value: Any) -> Any:
    """Sets sorted and enums as text: the same JSON in every process, whatever its hash seed."""
    if isinstance(value, set):
        return sorted(value)
    return str(value.value) if hasattr(value, "value") else value
