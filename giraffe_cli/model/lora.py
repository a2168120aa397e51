"""The adapter that is trained: PEFT's LoRA and its kin, with the checks PEFT leaves out.

PEFT trains silently when one of two targets is misspelt, and its adapter files carry no RoPE, so
that an adapter loaded on the unscaled base gives other logits and no error. Here every target must
match a linear layer, and `rope.json` travels inside the adapter's folder.

Whatever is trained is float32, also modules that are trained whole beside the adapter
(`also_train`): a step of 2e-5 on a weight of 0.02 is lost in bfloat16, whose steps there are 6e-5.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from giraffe_cli.adapter import ADAPTER_WEIGHTS
from giraffe_cli.config.lora import LoraConfig
from giraffe_cli.model.pissa import START, as_plain_lora, start_from_largest_directions
from giraffe_cli.model.targets import check_targets
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import atomic_open, write_json, write_sealed
from giraffe_cli.weights import ADAPTER_CONFIG

WHOLE_MODULES = {
    "embeddings": ["embed_tokens"],
    "norms": ["input_layernorm", "post_attention_layernorm", "norm"],
}
"""What LongLoRA trains beside its adapter, in Llama's names (arXiv:2309.12307, §3.3)."""


def add_lora(model: nn.Module, config: LoraConfig, seed: int) -> PeftModel:
    """`model` frozen, with float32 adapters on `config.targets`; the same `seed`, the same adapter.

    Raises:
        InvalidInput: a target matches no linear layer (near misses named), or is the head, whose
            loss is fused (`model/loss.py`).
    """
    check_targets(model, config.targets)
    whole = [name for part in config.also_train for name in WHOLE_MODULES[part]]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(
            model,
            _peft_config(
                config,
                lora_dropout=config.dropout,
                modules_to_save=whole or None,
                ensure_weight_tying="embeddings" in config.also_train and is_tied(model),
            ),
        )
        if config.init_lora_weights == "pissa":
            start_from_largest_directions(adapted, _peft_config(config))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _peft_config(config: LoraConfig, **values: Any) -> PeftLoraConfig:
    return PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(config.targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        bias="none",
        task_type="CAUSAL_LM",
        **values,
    )


def is_tied(model: nn.Module) -> bool:
    """Whether embeddings and head are one tensor."""
    config: Any = model.config
    return bool(config.tie_word_embeddings)


def save_adapter(model: PeftModel, folder: Path, table: RopeTable, source: str) -> None:
    """Write the adapter into the existing `folder` in PEFT's format, `rope.json` beside it.

    `source` is what the user called the base model; a path of this machine's run directory would
    mean nothing elsewhere. The bytes depend on the weights alone. A PiSSA adapter becomes the plain
    LoRA it is. A head tied to trained embeddings is stored twice, because PEFT reads both.
    """
    tensors, settings = _tensors(model), model.peft_config["default"].to_dict()
    if START in model.peft_config:
        start = model.peft_config[START]
        tensors = as_plain_lora(tensors, _tensors(model, START))
        scaling = start.lora_alpha / (start.r**0.5 if start.use_rslora else start.r)
        settings.update(r=2 * start.r, lora_alpha=scaling * 2 * start.r, use_rslora=False)
    with atomic_open(folder / ADAPTER_WEIGHTS) as handle:
        handle.write(save(tensors, metadata={"format": "pt"}))
    settings.update(base_model_name_or_path=source, inference_mode=True)
    write_json(folder / ADAPTER_CONFIG, {key: _plain(value) for key, value in settings.items()})
    write_sealed(folder / "rope.json", table.to_json())


def _tensors(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """As PEFT names them in a file; copies, for safetensors stores no tensor under two names."""
    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


def _plain(value: Any) -> Any:
    """Sets sorted and enums as text: the same JSON in every process, whatever its hash seed."""
    if isinstance(value, set):
        return sorted(value)
    return str(value.value) if hasattr(value, "value") else value
