"""A Llama decoder layer with its projections taken together and one pass for what lies between.

    layers = fused_layers(decoder.layers)       # the same weights, read when they are used
    middle = layers[0].attention_block(hidden, attending, tape)
    hidden = layers[0].mlp_block(middle)

The same function as transformers' layer under PEFT's adapters, to rounding; on a CPU in float32 to
the order of sums. What it cannot take together (`why_not_fused`) stays with transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from giraffe_cli.model.attention import document_attention
from giraffe_cli.model.flash import AttentionTape
from giraffe_cli.model.pointwise import on, rms_norm, rotate, swiglu
from giraffe_cli.model.products import products, why_not_together

PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}


@dataclass(frozen=True)
class FusedLayer:
    """transformers' `LlamaDecoderLayer`, run by its weights."""

    layer: Any

    def attention_block(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        settings: dict[str, Any],
        tape: AttentionTape | None,
    ) -> Tensor:
        """h + attention(norm(h)), `[1, S, d]`."""
        attention = self.layer.self_attn
        normed = _normed(self.layer.input_layernorm, hidden)
        states = products(normed, [attention.q_proj, attention.k_proj, attention.v_proj])
        query, key, value = (
            part.view(*hidden.shape[:2], -1, attention.head_dim) for part in states
        )
        turn = on(hidden.device, rotate)
        attended, _no_weights = document_attention(
            attention,
            turn(query, *rotary).transpose(1, 2),
            turn(key, *rotary).transpose(1, 2),
            value.transpose(1, 2),
            None,
            scaling=attention.scaling,
            tape=tape,
            **settings,
        )
        joined = attended.reshape(*hidden.shape[:2], -1)
        return hidden + products(joined, [attention.o_proj])[0]

    def mlp_block(self, hidden: Tensor) -> Tensor:
        """h + mlp(norm(h)), `[1, S, d]`."""
        mlp = self.layer.mlp
        normed = _normed(self.layer.post_attention_layernorm, hidden)
        gate, up = products(normed, [mlp.gate_proj, mlp.up_proj])
        return hidden + products(on(hidden.device, swiglu)(gate, up), [mlp.down_proj])[0]


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    normed: Tensor = on(hidden.device, rms_norm)(hidden, norm.weight, norm.variance_epsilon)
    return normed


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
