"""A decoder layer by its parts, so that whoever runs it can take some of them tile by tile.

    hidden [1, S, d] ── project ──► query, key, value ── attend ──► [1, S, H, D]
       │                                                               │
       └──────────────────────── rejoin ◄──────────────────────────────┘
                                   │
                               mlp_block

All but `attend` treat every token alone. `PlainLayer` runs transformers' modules, `FusedLayer`
their weights. Legend of shapes: S tokens, d hidden, H heads, K key/value heads, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.attention import document_attention
from giraffe_cli.model.flash import AttentionTape

Context = Callable[[], Any]
"""Makes the context manager (autocast) under which a block computes."""
States = tuple[Tensor, Tensor, Tensor]
"""Query `[1, S, H, D]`, key and value `[1, S, K, D]`, position in the first two; or gradients."""


@dataclass(frozen=True)
class Attending:
    """What every layer's attention needs besides its input."""

    position_embeddings: tuple[Tensor, Tensor]
    """cos and sin, [1, S, D] each."""
    settings: dict[str, Any]
    """Keywords of the attention function, such as `cu_seqlens`."""


@dataclass(frozen=True)
class AbstractLayer(ABC):
    """transformers' `LlamaDecoderLayer`, its weights read when they are used."""

    layer: Any

    @abstractmethod
    def project(self, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> States:
        """What attends, of norm(h) `[1, S, d]`."""

    @abstractmethod
    def rejoin(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """h + what `[1, S, H, D]` was attended to, projected; `[1, S, d]`."""

    @abstractmethod
    def mlp_block(self, hidden: Tensor) -> Tensor:
        """h + mlp(norm(h)), `[1, S, d]`."""

    def attend(
        self, states: States, settings: dict[str, Any], tape: AttentionTape | None = None
    ) -> Tensor:
        """`[1, S, H, D]`; of some heads where `states` are of some."""
        attention = self.layer.self_attn
        dropout = attention.attention_dropout if attention.training else 0.0
        query, key, value = (part.transpose(1, 2) for part in states)
        attended, _no_weights = document_attention(
            *(attention, query, key, value, None, dropout, attention.scaling),
            tape=tape,
            **settings,
        )
        return attended

    def attention_block(
        self, hidden: Tensor, attending: Attending, tape: AttentionTape | None = None
    ) -> Tensor:
        """h + attention(norm(h)), `[1, S, d]`."""
        states = self.project(hidden, attending.position_embeddings)
        return self.rejoin(hidden, self.attend(states, attending.settings, tape))

    def mlp_backward(self, hidden: Tensor, slope: Tensor, context: Context) -> Tensor:
        """The gradient of `hidden` from that of `mlp_block`'s result, `[1, S, d]`; weights get
        theirs on the way."""
        leaf = hidden.detach().requires_grad_()
        with torch.enable_grad(), context():
            out = self.mlp_block(leaf)
        torch.autograd.backward(out, slope)
        assert leaf.grad is not None
        return leaf.grad

    def project_backward(
        self,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        slopes: States,
        context: Context,
        wanted: bool,
    ) -> Tensor | None:
        """The gradient of `hidden` (None unless wanted) from those of `project`'s results; weights
        get theirs on the way."""
        leaf = hidden.detach().requires_grad_(wanted)
        with torch.enable_grad(), context():
            states = self.project(leaf, rotary)
        backward_from(states, slopes)
        return leaf.grad


def backward_from(results: tuple[Tensor, ...], slopes: tuple[Tensor, ...]) -> None:
    """Back from those that depend on something trained."""
    pairs = [(one, slope) for one, slope in zip(results, slopes, strict=True) if one.requires_grad]
    if pairs:
        roots, given = zip(*pairs, strict=True)
        torch.autograd.backward(roots, given)
