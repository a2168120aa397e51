"""Several LoRA projections of one input as one function.

    query, key, value = products(hidden, [q_proj, k_proj, v_proj])

    y_i = x·W_iᵀ + (x·A_iᵀ)·(s·B_i)ᵀ        dx = Σ dy_i·W_i + [dy_i·s·B_i]·[A_i]

The down projections of all A_i are one product over x, what they give is added to y_i where it
lies, and so are the parts of dx: PEFT's module makes four passes more over each y_i. W + s·B·A is
not formed: in bfloat16 the sum would round most of an adapter away. A weight in 4 bits is widened
for its product, and again for its gradient; what no gradient needs is not widened either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from giraffe_cli.model.low_bits import dense, is_coded, rows_of


@dataclass(frozen=True)
class Factors:
    """One projection: a frozen weight `[out, in]`, or its 4 bits; with an adapter A `[r, in]`,
    B `[out, r]`."""

    weight: Tensor
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0


def why_not_together(module: nn.Module) -> str | None:
    """Why `module` cannot be one of `products`; None where it can."""
    base: Any = module.base_layer if isinstance(module, LoraLayer) else module
    if type(base) is not nn.Linear and not is_coded(base.weight):
        return f"a layer of type {type(base).__name__}"
    bias: Any = base.bias
    if bias is not None:
        return "a bias"
    if base.weight.requires_grad:
        return "trained base weights"
    if not isinstance(module, LoraLayer):
        return None
    if module.lora_variant or module.active_adapters != ["default"]:
        return "an adapter of another kind than plain LoRA"
    dropout = module.lora_dropout["default"]
    return None if isinstance(dropout, nn.Identity) else "dropout inside the adapter"


def factors_of(module: nn.Module) -> Factors:
    """What `module`, of which `why_not_together` says nothing, multiplies with now."""
    if not isinstance(module, LoraLayer):
        weight: Any = module.weight
        return Factors(weight)
    down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
    return Factors(module.base_layer.weight, down, up, float(module.scaling["default"]))


def products(
    hidden: Tensor, modules: Sequence[nn.Module], *, valued: bool = True
) -> tuple[Tensor, ...]:
    """`[..., out_i]` of every module from `hidden` `[..., in]`; weights are of its dtype, adapters
    are taken in it.

    Not `valued`, they are shapes in the memory of one number, to go back from: what the gradients
    need is `hidden`, not the products.
    """
    found = [factors_of(module) for module in modules]
    tensors = [part for one in found for part in (one.weight, one.down, one.up)]
    scales = tuple(one.scale for one in found)
    together: tuple[Tensor, ...] = _Products.apply(hidden, scales, valued, *tensors)  # type: ignore[no-untyped-call]
    return together


class _Products(torch.autograd.Function):
    """The formulas above over rows `[n, in]`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, scales: tuple[float, ...], valued: bool, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, downs, ups = tensors[::3], tensors[1::3], tensors[2::3]
        rows, dtype = hidden.reshape(-1, hidden.shape[-1]), hidden.dtype
        all_down = _stacked(downs, dtype)
        inner = None if all_down is None else rows @ all_down.t()  # [n, Σr]
        places = _places(downs)
        outs = []
        for weight, up, scale, place in zip(weights, ups, scales, places, strict=True):
            assert weight is not None
            if not valued:
                outs.append(rows.new_zeros(1).expand(*hidden.shape[:-1], rows_of(weight)))
                continue
            out = rows @ dense(weight, dtype).t()
            if up is not None and inner is not None:
                out.addmm_(inner[:, place], (up * scale).to(dtype).t())
            outs.append(out.view(*hidden.shape[:-1], -1))
        # what unpacks a saved tensor need not bring back how its 4 bits are read
        ctx.coded = [weight if is_coded(weight) else None for weight in weights]
        plain = (None if is_coded(weight) else weight for weight in weights)
        ctx.save_for_backward(rows, inner, all_down, *plain, *ups)
        ctx.scales, ctx.places, ctx.shape = scales, places, hidden.shape
        return tuple(outs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        rows, inner, all_down, *rest = ctx.saved_tensors
        count = len(ctx.scales)
        plain, ups = rest[:count], rest[count:]
        slopes: list[Tensor] = []  # [n, r] each: what reaches the adapters' inner activations
        up_grads: list[Tensor | None] = []
        below: Tensor | None = None
        wants_below = ctx.needs_input_grad[0]
        for n in range(count):
            grad = grad_outputs[n].reshape(len(rows), -1)
            if ups[n] is not None:
                slopes.append(grad @ (ups[n] * ctx.scales[n]).to(grad.dtype))
                up_grad = ctx.scales[n] * (grad.t() @ inner[:, ctx.places[n]])
                up_grads.append(up_grad.to(ups[n].dtype))
            else:
                up_grads.append(None)
            if wants_below:
                weight = plain[n] if ctx.coded[n] is None else dense(ctx.coded[n], grad.dtype)
                below = grad @ weight if below is None else below.addmm_(grad, weight)
                del weight
        down_grads: list[Tensor | None] = [None] * count
        if slopes:
            together = torch.cat(slopes, 1)
            all_down_grad = together.t() @ rows
            down_grads = [
                None if up is None else all_down_grad[place].to(up.dtype)
                for up, place in zip(ups, ctx.places, strict=True)
            ]
            if below is not None:
                below.addmm_(together, all_down)
        parts = zip([None] * count, down_grads, up_grads, strict=True)
        flat = [part for triple in parts for part in triple]
        return None if below is None else below.view(ctx.shape), None, None, *flat


def _stacked(downs: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """All A_i, `[Σr, in]`."""
    there = [down.to(dtype) for down in downs if down is not None]
    return torch.cat(there) if there else None


def _places(downs: Sequence[Tensor | None]) -> list[slice]:
    """Where each module's part of Σr lies."""
    places, start = [], 0
    for down in downs:
        end = start + (0 if down is None else len(down))
        places.append(slice(start, end))
        start = end
    return places
