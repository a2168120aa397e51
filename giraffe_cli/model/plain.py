"""A Llama decoder layer run by transformers' own modules: any adapter, any kind of weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from giraffe_cli.model.layer_base import AbstractLayer, States
from giraffe_cli.model.pointwise import rotate


@dataclass(frozen=True)
class PlainLayer(AbstractLayer):
    """To the bit what `LlamaDecoderLayer.forward` gives."""

    def project(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> States:
        attention = self.layer.self_attn
        normed = self.layer.input_layernorm(hidden)
        query, key, value = (
            module(normed).view(*hidden.shape[:2], -1, attention.head_dim)
            for module in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return rotate(query, *rotary), rotate(key, *rotary), value

    def rejoin(self, hidden: Tensor, attended: Tensor) -> Tensor:
        joined = attended.reshape(*hidden.shape[:2], -1)
        block: Tensor = hidden + self.layer.self_attn.o_proj(joined)
        return block

    def mlp_block(self, hidden: Tensor) -> Tensor:
        block: Tensor = hidden + self.layer.mlp(self.layer.post_attention_layernorm(hidden))
        return block
