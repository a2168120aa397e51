"""Weights in 4 bits for `ShardedBase`: their codes are shared out, their scales are whole.

    model.layers.0.mlp.up_proj.weight   codes  [n/2, 1] uint8, a part in every process
                                        scales n/64 bytes and 4 of each 256 of those, in all of them

Scales are a thirtieth of it. Codes are made of whole weights, one at a time, as transformers makes
them when it loads a model in 4 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from giraffe_cli.model.low_bits import NF4, import_bitsandbytes, nf4_settings
from giraffe_cli.weights import HEAD


def with_coded_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """The decoder's linear layers of an empty `model` are such as read 4 bits, computing in
    `dtype`; the head stays.

    Raises:
        InvalidInput: bitsandbytes is missing.
    """
    settings = nf4_settings(dtype)
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    replace_with_bnb_linear(model, [HEAD.removesuffix(".weight")], settings)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT goes by it


def is_to_be_coded(weight: Tensor) -> bool:
    """Whether 4 bits of each number of `weight` will be kept."""
    return hasattr(weight, "bnb_quantized")


def without_codes(weight: Any, owner: nn.Module) -> nn.Parameter:
    """In the place of an empty `weight` of `owner`: codes that are not there, on the CPU."""
    parameter: nn.Parameter = type(weight)(
        torch.zeros(1, dtype=torch.uint8).expand(-(-weight.numel() // 2), 1),
        requires_grad=False,
        quant_type=weight.quant_type,
        compress_statistics=weight.compress_statistics,
        blocksize=weight.blocksize,
        bnb_quantized=True,
        module=owner,
    )
    return parameter


def codes_of(numbers: Tensor, parameter: Any, device: torch.device) -> Tensor:
    """`[n/2]` uint8 on the CPU: the codes of `numbers` `[out, in]`. Their scales, on `device`, are
    with `parameter` from now on."""
    coded, scales = import_bitsandbytes(NF4).functional.quantize_4bit(
        numbers.to(device),
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
    )
    parameter.quant_state = parameter.module.quant_state = scales
    found: Tensor = coded.reshape(-1).cpu()
    return found
