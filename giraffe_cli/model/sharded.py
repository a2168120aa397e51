"""A base whose weights are shared out: each process holds 1/N of them, and two layers whole.

    base = ShardedBase(shards, line, processes, group)
    base.take_embeddings()                 # whole until two others were asked for
    layers = base.layers(decoder.layers)   # layers[n] is whole until two others were asked for
    base.take_head()

A layer is gathered into one of two buffers when it is asked for, forward and again backward, while
the one before is computed: whoever asks goes up or down the line, so the next is known. A weight
that is not there reads as NaN, not as another layer's; codes that are not there are refused by who
reads them (`model/low_bits.py`).

Not torch's FSDP2 (`fully_shard`): its hooks fire when a module's own forward is called, and here
layers are run by parts inside an autograd function (`model/stack.py`) or by their weights alone
(`model/fused.py`). The weights are frozen; where they are trained, `model/sharded_training.py` has
what becomes of their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from giraffe_cli.model.collectives import all_gather

ALIGNMENT = 256
"""Bytes between the beginnings of weights, and of processes' parts, in a gathered buffer."""


class AbstractShard(Protocol):
    """One layer's weights: their bytes one after the other, of which this process keeps a part."""

    @property
    def part(self) -> Tensor:
        """[n] uint8: bytes `rank · n` to `(rank + 1) · n`."""

    @property
    def weights(self) -> tuple[nn.Parameter, ...]:
        """The weights of the layer's modules."""

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each begins in the bytes of all."""


@dataclass(frozen=True)
class Shard:
    """An `AbstractShard` whose weights are frozen."""

    part: Tensor
    weights: tuple[nn.Parameter, ...]
    offsets: tuple[int, ...]


def layout(weights: Sequence[Tensor], processes: int) -> tuple[tuple[int, ...], int]:
    """Where each of `weights` begins, and the bytes of a process's part."""
    offsets, end = [], 0
    for weight in weights:
        offsets.append(end)
        end += -(-weight.numel() * weight.element_size() // ALIGNMENT) * ALIGNMENT
    part = -(-end // processes)
    return tuple(offsets), -(-part // ALIGNMENT) * ALIGNMENT


def absent(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """NaNs of that shape in the memory of one; of codes, which are no numbers, naughts."""
    if not dtype.is_floating_point:
        return torch.zeros(1, dtype=dtype, device=device).expand(*shape)
    return torch.full((1,), float("nan"), dtype=dtype, device=device).expand(*shape)


class ShardedBase:
    """Shards of a base on their line: embeddings, layers from the first to the last, head."""

    def __init__(
        self,
        shards: Sequence[AbstractShard],
        line: Sequence[int | None],
        processes: int,
        group: Any = None,
    ) -> None:
        """`line` has the number of the shard for each place on it, None where weights are whole;
        tied embeddings and head are one shard. `group` is torch's, of all processes by default."""
        self.shards, self.line, self.group = shards, line, group
        # a part may be made when it is asked for: not all of them at a time
        room = processes * max(len(shard.part) for shard in shards)
        device = shards[0].part.device
        self.buffers = [torch.empty(room, dtype=torch.uint8, device=device) for _ in range(2)]
        self.held: list[int | None] = [None, None]
        self.coming: list[Any] = [None, None]
        self.sent: list[Tensor | None] = [None, None]
        """Parts on their way to the others, which must not be let go of before they are there."""
        self.in_use, self.place, self.processes = 0, 0, processes

    def let_go(self) -> None:
        """No weight is there; what stands for them lies on the device of their parts."""
        for shard in self.shards:
            self._let_go(shard)

    def layers(self, layers: Sequence[Any]) -> Sequence[Any]:
        """`layers` of the base, or what wraps them: each whole from when it is asked for."""
        return _Layers(layers, self)

    def take_embeddings(self) -> None:
        """The embeddings, whole from now on; a pass begins."""
        self._take(0, 1)

    def take_layer(self, number: int) -> None:
        """Layer `number`, whole from now on."""
        place = number + 1
        self._take(place, place + 1 if place > self.place else place - 1)

    def take_head(self) -> None:
        """The head, whole from now on; with gradients the layers come once more, last to first."""
        last = len(self.line) - 1
        self._take(last, last - 1 if torch.is_grad_enabled() else 0)

    def _let_go(self, shard: AbstractShard) -> None:
        device = self.buffers[0].device
        for weight in shard.weights:
            weight.data = absent(weight.shape, weight.dtype, device)

    def _take(self, place: int, following: int) -> None:
        self.place = place
        if (number := self.line[place]) is not None:
            self.in_use = self._slot_of(number)
            self._arrive(self.in_use)
        # a pass that is over sends for nothing: place 0 begins another
        if following > 0 and (number := self.line[following]) is not None:
            self._slot_of(number)

    def _slot_of(self, number: int) -> int:
        """The buffer that holds shard `number`, or to which it is on its way from now on."""
        if number in self.held:
            return self.held.index(number)
        slot, shard = 1 - self.in_use, self.shards[number]
        self._arrive(slot)
        if (before := self.held[slot]) is not None:
            self._let_go(self.shards[before])
        part = shard.part
        room = self.buffers[slot][: self.processes * len(part)]
        self.coming[slot], self.sent[slot] = all_gather(part, room, self.group), part
        self.held[slot] = number
        return slot

    def _arrive(self, slot: int) -> None:
        if self.coming[slot] is None:
            return
        self.coming[slot].wait()
        self.coming[slot], self.sent[slot], number = None, None, self.held[slot]
        assert number is not None
        shard = self.shards[number]
        for weight, offset in zip(shard.weights, shard.offsets, strict=True):
            size = weight.numel() * weight.element_size()
            found = self.buffers[slot][offset : offset + size]
            weight.data = found.view(weight.dtype).view(weight.shape)


class _Layers(Sequence[Any]):
    """Layers that are whole when they are asked for."""

    def __init__(self, layers: Sequence[Any], base: ShardedBase) -> None:
        self.wrapped, self.base = layers, base

    def __len__(self) -> int:
        return len(self.wrapped)

    @overload
    def __getitem__(self, number: int) -> Any: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Any]: ...

    def __getitem__(self, number: int | slice) -> Any:
        if isinstance(number, slice):
            raise TypeError("sharded layers are taken one at a time")
        layer = self.wrapped[number]
        self.base.take_layer(number)
        return layer
