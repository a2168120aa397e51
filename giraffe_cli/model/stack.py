"""The decoder layers of a Llama, with as much recomputation as the memory at hand asks for.

A layer is two residual blocks, h + attention(norm(h)) and h + mlp(norm(h)); the second one treats
every token alone. With `checkpointing: none` autograd keeps what both save. Otherwise the forward
keeps each layer's input [1, S, d] (and, under `attention`, its attention output and log-sum-exp)
in a store, and the backward goes through the layers from the last to the first:

    attention block again, with gradient; its attention played back, not computed
    mlp block again, one tile of tokens at a time, each tile's backward at once
    backward through the attention block

At most one attention block and one tile of one MLP exist at a time, each is recomputed once, and
the backward starts with the gradient that the layer above left. Trained weights get their gradients
on the way, into `.grad`. With a `projection_tile` the attention block goes by tiles as well, but
for attention itself: `model/tiled.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from giraffe_cli.model.flash import AttentionTape
from giraffe_cli.model.layer_base import AbstractLayer, Attending, Context
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.store import make_stores
from giraffe_cli.model.store_base import AbstractStore
from giraffe_cli.model.tiled import TiledLayer


def run_layers(
    layers: Sequence[AbstractLayer],
    hidden: Tensor,
    attending: Attending,
    levers: Levers,
    context: Context,
    folder: Path | None = None,
) -> Tensor:
    """Hidden states [1, S, d] after all `layers`, differentiable.

    `folder` holds the file of `offload: disk`. Only one backward pass goes through the result, and
    it writes over the gradient that it is given.
    """
    if not torch.is_grad_enabled():
        return _without_gradient(layers, hidden, attending, levers, context)
    count = 0 if levers.checkpointing == "none" else max(0, len(layers) - levers.whole_layers)
    if count:
        stores = make_stores(levers, count, hidden.device, folder)
        # not a slice where it is all of them: layers that are shared out are taken one by one
        recomputed = layers if count == len(layers) else layers[:count]
        work = _Recomputation(recomputed, attending, levers, context, stores)
        # without an input that needs a gradient autograd would not call the backward
        anchor = torch.zeros((), device=hidden.device, requires_grad=True)
        hidden = _Recomputed.apply(hidden, anchor, work)  # type: ignore[no-untyped-call]
    with context():
        for number in range(count, len(layers)):
            layer = layers[number]
            hidden = layer.mlp_block(layer.attention_block(hidden, attending))
    return hidden


def _without_gradient(
    layers: Sequence[AbstractLayer],
    hidden: Tensor,
    attending: Attending,
    levers: Levers,
    context: Context,
) -> Tensor:
    for layer in layers:
        if levers.projection_tile:
            hidden = TiledLayer(layer, attending, levers, context, None).forward(hidden)
            continue
        with context():
            hidden = layer.attention_block(hidden, attending)
            _mlp_in_place(layer, hidden, levers)
    return hidden


def _mlp_in_place(layer: AbstractLayer, hidden: Tensor, levers: Levers) -> None:
    """The MLP block over its own input, tile by tile; without gradients only."""
    for tile in _tiles(hidden, levers):
        tile.copy_(layer.mlp_block(tile))


def _tiles(hidden: Tensor, levers: Levers) -> tuple[Tensor, ...]:
    """Views of [1, S, d] along S."""
    return torch.split(hidden, levers.mlp_tile or hidden.shape[1], 1)


class _Recomputation:
    """One pass forward over the layers and one back."""

    def __init__(
        self,
        layers: Sequence[AbstractLayer],
        attending: Attending,
        levers: Levers,
        context: Context,
        stores: Sequence[AbstractStore],
    ) -> None:
        self.layers, self.attending, self.levers = layers, attending, levers
        self.context, self.stores = context, stores
        self.random_states: list[Tensor] = []
        keeps = levers.checkpointing == "attention"
        first = len(layers) - levers.attention_layers if levers.attention_layers else 0
        self.tapes = [
            AttentionTape(store, str(n)) if keeps and n >= first else None
            for n, store in enumerate(stores)
        ]

    def forward(self, hidden: Tensor) -> Tensor:
        """Without gradients; leaves in the store what `backward` needs."""
        for number, layer in enumerate(self.layers):
            self.stores[number].put(f"{number}/input", hidden)
            self.random_states.append(_random_state(hidden.device))
            if self.levers.projection_tile:
                hidden = self._tiled(layer, number).forward(hidden)
                continue
            with self.context():
                hidden = layer.attention_block(hidden, self.attending, self.tapes[number])
                _mlp_in_place(layer, hidden, self.levers)
        for store in dict.fromkeys(self.stores):
            store.all_put()
        return hidden

    def backward(self, grad: Tensor, wants_input: bool) -> Tensor | None:
        """The gradient of the first layer's input (None unless wanted), given the last's output's,
        which is written over; weights get theirs on the way."""
        grad = grad.contiguous()  # to be written over: what is above made it for this pass
        for number in reversed(range(len(self.layers))):
            below = self._backward_layer(number, grad, wants_input or number > 0)
            if below is None:
                return None
            grad = below
        return grad

    def _backward_layer(self, number: int, grad: Tensor, wanted: bool) -> Tensor | None:
        """As `backward`, of one layer."""
        layer, tape = self.layers[number], self.tapes[number]
        hidden = self.stores[number].take(f"{number}/input").detach()
        state = self.random_states.pop()
        if tape:
            tape.rewind()
        if self.levers.projection_tile:
            return self._tiled(layer, number).backward(
                hidden, grad, wanted, lambda: _drawing_from(state, hidden.device)
            )
        hidden.requires_grad_(wanted)
        with _drawing_from(state, hidden.device), torch.enable_grad():
            with self.context():
                middle = layer.attention_block(hidden, self.attending, tape)
            self._backward_mlp(layer, middle.detach(), grad)
        if middle.requires_grad:
            edge = get_gradient_edge(middle)
            del middle  # nothing before it needs its values
            torch.autograd.backward(edge, grad)
        # the first `grad` lives until the end, since autograd holds it, so it serves all layers
        return None if hidden.grad is None else grad.copy_(hidden.grad)

    def _tiled(self, layer: AbstractLayer, number: int) -> TiledLayer:
        return TiledLayer(layer, self.attending, self.levers, self.context, self.tapes[number])

    def _backward_mlp(self, layer: AbstractLayer, middle: Tensor, grad: Tensor) -> None:
        """Writes the gradient of the MLP block's input over `grad`, its output's, tile by tile."""
        tiles = zip(*(_tiles(part, self.levers) for part in (middle, grad)), strict=True)
        for tile, grad_tile in tiles:
            grad_tile.copy_(layer.mlp_backward(tile, grad_tile, self.context))


class _Recomputed(torch.autograd.Function):
    """Autograd's view of a `_Recomputation`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, anchor: Tensor, work: _Recomputation) -> Tensor:
        ctx.work = work
        return work.forward(hidden)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # whoever still has the loss has this node: not its stores, a window's pinned memory or file
        work, ctx.work = ctx.work, None
        return work.backward(grad_outputs[0], ctx.needs_input_grad[0]), None, None


def _random_state(device: torch.device) -> Tensor:
    """What dropout draws from on `device`, as bytes on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def _drawing_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Dropout draws what it drew when the state was taken; afterwards as if nothing had been."""
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if is_cuda else []):
        if is_cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield
