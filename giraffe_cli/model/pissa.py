"""PiSSA: an adapter that starts as the largest singular directions of its weight.

With W ≈ U S Vᵀ cut at rank r and s the adapter's scaling (arXiv:2404.02948):

    A₀ = √(S/s) Vᵀ  [r, in]      B₀ = U √(S/s)  [out, r]      y = W x + s B A x - s B₀ A₀ x

A and B start at A₀ and B₀, so that the model starts as it was and the strongest directions move
first. The published way subtracts s B₀ A₀ from W. Here W stays as it is, and the constant term is
a second, frozen adapter (`START`): what is trained is then exactly a LoRA of rank 2r on the
original base, A' = [A; A₀], B' = [B, -B₀], also where W is kept in 16 or 4 bits, in which a
subtraction would be rounded away. It costs a second low-rank product and saves a copy of W.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from torch.nn import functional

from giraffe_cli.errors import not_finite
from giraffe_cli.model.finite import is_finite

ADAPTER, START = "default", "start"
OVERSAMPLING, ITERATIONS = 8, 16
"""Of the randomised SVD (Halko, arXiv:0909.4061): what PEFT's `pissa_niter_16` takes."""


def start_from_largest_directions(model: PeftModel, config: PeftLoraConfig) -> None:
    """Set A and B of `ADAPTER` on every target, and add the frozen `START`; both are in force.

    `config` is `START`'s: that of `ADAPTER` without dropout. Draws from torch's generator.
    """
    model.add_adapter(START, config)
    for layer in lora_layers(model):
        layer.set_adapter([ADAPTER, START])
        down, up = largest_directions(layer, config.r)
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.copy_(down)
            layer.lora_B[ADAPTER].weight.copy_(up)
            layer.lora_A[START].weight.copy_(down)
            layer.lora_B[START].weight.copy_(-up)
        for half in (layer.lora_A, layer.lora_B):
            half[START].weight.requires_grad_(False)


def largest_directions(layer: LoraLayer, rank: int) -> tuple[Tensor, Tensor]:
    """A₀ `[r, in]` and B₀ `[out, r]` in float32, scaled so that `scaling · B₀ A₀ ≈ W`.

    Raises:
        InvalidInput: the weight holds NaN or infinities.
    """
    weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
    columns = min(rank + OVERSAMPLING, *weight.shape)
    if not is_finite(weight):
        raise not_finite("a weight that PiSSA starts from")
    left, values, right = torch.svd_lowrank(weight, q=columns, niter=ITERATIONS)
    root = (values[:rank] / layer.scaling[ADAPTER]).sqrt()
    lacking = rank - len(root)  # a weight has no more directions than its smaller side
    down, up = root[:, None] * right[:, :rank].t(), left[:, :rank] * root
    return functional.pad(down, (0, 0, 0, lacking)), functional.pad(up, (0, lacking))


def as_plain_lora(trained: dict[str, Tensor], start: dict[str, Tensor]) -> dict[str, Tensor]:
    """One LoRA of rank 2r out of both adapters, keyed as `trained`; other tensors as they are."""
    axis = {"lora_A": 0, "lora_B": 1}
    joined = {}
    for name, tensor in trained.items():
        half = next((half for half in axis if f".{half}." in name), None)
        joined[name] = torch.cat([tensor, start[name]], axis[half]) if half else tensor
    return joined


def lora_layers(model: torch.nn.Module) -> Iterator[LoraLayer]:
    """Every layer that carries an adapter."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))
