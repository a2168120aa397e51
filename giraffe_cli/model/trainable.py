"""A loaded base into the module that is trained, and what else needs to know how it was made.

    base = load_base(checkpoint.path, config.train, dtype=torch.bfloat16, table=table, ...)
    model = make_trainable(base, config.train, torch.bfloat16, seed=0)
    causal_model(model).model      the decoder, whatever is wrapped around it
    head_weight(model)             what the loss multiplies by: the trained tensor where it is one

Everything trained is float32, and so are its gradients and moments: 16 bytes a trained weight. Of a
16-bit base `method: full` therefore keeps float32 masters, which compute in bfloat16 by autocast;
what embeddings and norms hand on stays in the computation's dtype, so that trained ones cost no
wider activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.full import save_full
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.lora import add_lora, save_adapter
from giraffe_cli.model.low_bits import keep_codes, nf4_settings
from giraffe_cli.model.pissa import START
from giraffe_cli.rope.base import RopeTable

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def load_base(
    path: Path,
    config: TrainConfig,
    *,
    dtype: torch.dtype,
    table: RopeTable | None,
    attn_implementation: str,
) -> LlamaForCausalLM:
    """The checkpoint under `table`, as `config` wants it: in `dtype`, in 4 bits, or float32 to be
    trained whole.

    Raises:
        InvalidInput: bitsandbytes is needed and missing.
    """
    model = load_model(
        path,
        dtype=torch.float32 if config.method == "full" else dtype,
        table=table,
        attn_implementation=attn_implementation,
        quantization=nf4_settings(dtype) if config.quantize_base == "nf4" else None,
    )
    keep_codes(model)
    return model


def make_trainable(
    base: nn.Module, config: TrainConfig, dtype: torch.dtype, seed: int
) -> nn.Module:
    """What is trained: `base` itself, every weight, or `base` frozen under adapters of `seed`.

    `dtype` is the computation's.

    Raises:
        InvalidInput: a target of the adapter matches no linear layer.
    """
    if config.method == "full":
        model: nn.Module = base.requires_grad_(True)
    else:
        model = add_lora(base, config.lora, seed)
    if dtype != torch.float32:
        for module in _trained_whole(model):
            module.register_forward_hook(_Narrow(dtype))
        for module in model.modules():
            # PEFT would widen each input to the adapter's float32 for autocast to narrow it again:
            # 0.6 of 3.5 GB for SmolLM2 at 2k tokens, the same values
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False
    return model


class _Narrow:
    """Hands on in `dtype` what a float32 module computed; an object, so that models deep-copy."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return output.to(self.dtype)


def _trained_whole(model: nn.Module) -> list[nn.Module]:
    """Embeddings and norms whose own weight is trained."""
    return [
        module
        for name, module in model.named_modules()
        if ("embed_tokens" in name or "norm" in name)
        and any(weight.requires_grad for weight in module.parameters(recurse=False))
    ]


def causal_model(model: nn.Module) -> Any:
    """The `LlamaForCausalLM` inside what `make_trainable` returned."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def head_weight(model: nn.Module) -> Tensor:
    """`[V, d]`: the head in force. One tensor with the embeddings where they are tied, trained or
    not; PEFT's trained copy, not the original beside it, where it has one."""
    weight: Tensor = causal_model(model).get_output_embeddings().weight
    return weight


def state_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint must hold, by name: all that is trained, and where PiSSA started, which
    another machine would compute differently."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or f".{START}." in name
    }


def save_trained(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    folder: Path,
    table: RopeTable,
    source: str,
) -> None:
    """Write what was trained into the existing `folder`, `rope.json` beside it: an adapter in
    PEFT's format, or every tensor (`model/full.py`). The bytes depend on the weights alone.

    `parameters` are those of `model`; their pieces, where processes share them out: then the others
    `give_full`.
    """
    if isinstance(model, PeftModel):
        save_adapter(model, folder, table, source)
    else:
        save_full(parameters, folder, table, source)
