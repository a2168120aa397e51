"""A recomputed layer of which only attention sees the whole window at a time.

    forward    project tile by tile → attend, a group of heads at a time → rejoin and MLP by tiles
    backward   the first two again, attention played back where it was kept
               rejoin and MLP again by tiles, each tile's backward at once: over its part of the
               gradient from above it writes that of the layer's middle
               back through attention, a group of heads at a time
               project again by tiles, each back at once, added to the gradient

What lives over the whole window at the most, in numbers a token: d for the gradient, H·D each for
queries, outputs and their gradients, 2·K·D for keys and values; and of one group of heads the
gradients and what the kernel needs. A layer recomputed as one piece holds 2·d + 4·H·D + 4·K·D, and
what its kernel needs beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.flash import AttentionTape
from giraffe_cli.model.layer_base import AbstractLayer, Attending, Context, States
from giraffe_cli.model.levers import Levers


@dataclass(frozen=True)
class TiledLayer:
    """One layer for one window."""

    layer: AbstractLayer
    attending: Attending
    levers: Levers
    context: Context
    tape: AttentionTape | None
    """Records in `forward`, plays back in `backward`; None: attention is computed again."""

    def forward(self, hidden: Tensor) -> Tensor:
        """The layer's output `[1, S, d]`; without gradients."""
        with self.context():
            attended = [self._attend(group) for group in self._projected(hidden)]
            result = torch.empty_like(hidden)
            for part in self._tiles(hidden):
                middle = self.layer.rejoin(hidden[:, part], _joined(attended, part))
                result[:, part] = self.layer.mlp_block(middle)
        return result

    def backward(
        self, hidden: Tensor, grad: Tensor, wanted: bool, drawing: Callable[[], Any]
    ) -> Tensor | None:
        """The gradient of the layer's input (None unless wanted), written over the output's,
        `grad`; weights get theirs on the way. `drawing()` lets dropout draw what `forward` drew."""
        with drawing():
            with torch.no_grad(), self.context():
                projected = self._projected(hidden)
            groups = [_leaves(group) for group in projected]
            del projected
            with torch.enable_grad(), self.context():
                attended = [self._attend(group) for group in groups]
            slopes = self._rest_backward(hidden, attended, grad)
        if not (wanted or self._trains_projections()):
            return None
        through = _attention_backward(groups, attended, slopes)
        with drawing():
            self._projections_backward(hidden, through, grad if wanted else None)
        return grad if wanted else None

    def _projected(self, hidden: Tensor) -> list[States]:
        """By groups of heads."""
        states: list[States] = []
        count = self.levers.head_groups
        for part in self._tiles(hidden, self.levers.projection_tile):
            found = self.layer.project(hidden[:, part], self._rotary(part))
            split = [one.chunk(count, 2) for one in found]
            if not states:
                states = [_room(group, hidden.shape[1]) for group in zip(*split, strict=True)]
            for group, new in zip(states, zip(*split, strict=True), strict=True):
                for whole, tile in zip(group, new, strict=True):
                    whole[:, part] = tile
        return states

    def _attend(self, states: States) -> Tensor:
        return self.layer.attend(states, self.attending.settings, self.tape)

    def _rest_backward(self, hidden: Tensor, attended: list[Tensor], grad: Tensor) -> list[Tensor]:
        """The gradient of what was `attended`, by groups of heads; that of the layer's middle is
        written over `grad`."""
        slopes = [torch.empty_like(one) for one in attended]
        heads = [one.shape[2] for one in attended]
        for part in self._tiles(hidden):
            joined = _joined(attended, part).detach().requires_grad_()
            with torch.enable_grad(), self.context():
                middle = self.layer.rejoin(hidden[:, part], joined)
            slope = self.layer.mlp_backward(middle, grad[:, part], self.context)
            torch.autograd.backward(middle, slope)
            assert joined.grad is not None
            grad[:, part] = slope
            for whole, tile in zip(slopes, torch.split(joined.grad, heads, 2), strict=True):
                whole[:, part] = tile
        return slopes

    def _projections_backward(
        self, hidden: Tensor, slopes: list[States], grad: Tensor | None
    ) -> None:
        """Adds to `grad`, that of the residual, what comes through the projections."""
        for part in self._tiles(hidden, self.levers.projection_tile):
            query, key, value = (
                _joined(list(groups), part) for groups in zip(*slopes, strict=True)
            )
            below = self.layer.project_backward(
                *(hidden[:, part], self._rotary(part), (query, key, value), self.context),
                wanted=grad is not None,
            )
            if grad is not None and below is not None:
                grad[:, part] += below

    def _rotary(self, part: slice) -> tuple[Tensor, Tensor]:
        cos, sin = self.attending.position_embeddings
        return cos[:, part], sin[:, part]

    def _tiles(self, hidden: Tensor, tokens: int | None = None) -> Iterator[slice]:
        """Of the MLP's, or so many, tokens."""
        length = hidden.shape[1]
        step = (self.levers.mlp_tile if tokens is None else tokens) or length
        return (slice(start, start + step) for start in range(0, length, step))

    def _trains_projections(self) -> bool:
        """Whether a weight before attention is trained."""
        layer = self.layer.layer
        attention = layer.self_attn
        modules = (layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        return any(p.requires_grad for module in modules for p in module.parameters())


def _attention_backward(
    groups: list[States], attended: list[Tensor], slopes: list[Tensor]
) -> list[States]:
    """Gradients of the `groups`. The lists are emptied: what belongs to one group's heads is let go
    of before the next one's gradients are made."""
    through: list[States] = []
    while groups:
        group = groups.pop(0)
        query, key, value = torch.autograd.grad(attended.pop(0), group, slopes.pop(0))
        through.append((query, key, value))
    return through


def _leaves(states: States) -> States:
    query, key, value = (part.detach().requires_grad_() for part in states)
    return query, key, value


def _room(like: tuple[Tensor, ...], length: int) -> States:
    """For `length` tokens of tensors like a tile's."""
    query, key, value = (one.new_empty(one.shape[0], length, *one.shape[2:]) for one in like)
    return query, key, value


def _joined(groups: list[Tensor], part: slice) -> Tensor:
    """All heads of some tokens."""
    return torch.cat([group[:, part] for group in groups], 2)
