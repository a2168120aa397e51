"""A Llama decoder layer with its projections taken together and one pass for what lies between.

    layer = FusedLayer(decoder.layers[0])       # the same weights, read when they are used
    middle = layer.attention_block(hidden, attending, tape)
    hidden = layer.mlp_block(middle)

The same function as transformers' layer under PEFT's adapters, to rounding; on a CPU in float32 to
the order of sums. What it cannot take together (`why_not_fused`) stays with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.layer_base import AbstractLayer, Context, States, backward_from
from giraffe_cli.model.pointwise import on, rms_norm, rotate, swiglu
from giraffe_cli.model.products import products, why_not_together

PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class FusedLayer(AbstractLayer):
    """transformers' `LlamaDecoderLayer`, run by its weights."""

    def project(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> States:
        states = products(normed(self.layer.input_layernorm, hidden), self._projections)
        query, key, value = (self._by_heads(part) for part in states)
        turn = on(hidden.device, rotate)
        return turn(query, *rotary), turn(key, *rotary), value

    def rejoin(self, hidden: Tensor, attended: Tensor) -> Tensor:
        joined = attended.reshape(*hidden.shape[:2], -1)
        return hidden + products(joined, [self.layer.self_attn.o_proj])[0]

    def mlp_block(self, hidden: Tensor) -> Tensor:
        mlp = self.layer.mlp
        rows = normed(self.layer.post_attention_layernorm, hidden)
        gate, up = products(rows, [mlp.gate_proj, mlp.up_proj])
        return hidden + products(on(hidden.device, swiglu)(gate, up), [mlp.down_proj])[0]

    def mlp_backward(self, hidden: Tensor, slope: Tensor, context: Context) -> Tensor:
        """As the base's, without the last product: nobody asks for the block's result again, and
        the gradients need what goes into it."""
        mlp, leaf = self.layer.mlp, hidden.detach().requires_grad_()
        with torch.enable_grad(), context():
            gate, up = products(
                normed(self.layer.post_attention_layernorm, leaf), [mlp.gate_proj, mlp.up_proj]
            )
            inner = on(hidden.device, swiglu)(gate, up)
            (placeholder,) = products(inner, [mlp.down_proj], valued=False)
        del gate, up, inner  # autograd lets go of each as soon as it has passed it
        torch.autograd.backward(placeholder, slope)
        assert leaf.grad is not None
        return leaf.grad.add_(slope)

    def project_backward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        slopes: States,
        context: Context,
        wanted: bool,
    ) -> Tensor | None:
        """As the base's, without the products: their gradients need the input alone, and a rotation
        is undone by the opposite one."""
        leaf = hidden.detach().requires_grad_(wanted)
        cos, sin = rotary
        turn = on(hidden.device, rotate)
        query, key = (turn(slope, cos, -sin) for slope in slopes[:2])
        with torch.enable_grad(), context():
            rows = normed(self.layer.input_layernorm, leaf)
            placeholders = products(rows, self._projections, valued=False)
        flat = (slope.reshape(*hidden.shape[:2], -1) for slope in (query, key, slopes[2]))
        backward_from(placeholders, tuple(flat))
        return leaf.grad

    @property
    def _projections(self) -> list[Any]:
        attention = self.layer.self_attn
        return [attention.q_proj, attention.k_proj, attention.v_proj]

    def _by_heads(self, part: Tensor) -> Tensor:
        return part.view(*part.shape[:2], -1, self.layer.self_attn.head_dim)


def normed(norm: Any, hidden: Tensor) -> Tensor:
    """What transformers' `LlamaRMSNorm` gives, in one pass where it is compiled."""
    result: Tensor = on(hidden.device, rms_norm)(hidden, norm.weight, norm.variance_epsilon)
    return result


def why_not_fused(layers: Sequence[Any]) -> str | None:
    """What of `layers` keeps them from being fused, a few words; None where nothing does."""
    for layer in layers:
        if layer.self_attn.attention_dropout:
            return "dropout in attention"
        if layer.mlp.config.hidden_act != "silu":
            return f"the activation {layer.mlp.config.hidden_act}"
        if not all(
            hasattr(norm, "variance_epsilon") and not norm.weight.requires_grad
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        ):
            return "trained norms"
        for part, names in PROJECTIONS.items():
            for name in names:
                obstacle = why_not_together(getattr(getattr(layer, part), name))
                if obstacle:
                    return obstacle
    return None
