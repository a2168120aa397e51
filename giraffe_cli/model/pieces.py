"""A weight of which each of several processes has a piece: what it is saved as, and read back.

    q_proj [2, 6]    process 0 has numbers 0 to 8, process 1 those from 8 on: a `Piece` each
    saved            whole, by the first process; the others `give` it theirs, one weight at a time

What is saved is what a single process would save, so any number of them goes on from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from giraffe_cli.model.collectives import receive, send


@dataclass(frozen=True)
class Place:
    """Which numbers of a weight each process of `group` has."""

    shape: tuple[int, ...]
    """Of the whole weight."""
    ranges: tuple[tuple[int, int], ...]
    """First number and the one behind the last, of each process; empty ones are (0, 0)."""
    rank: int
    group: Any

    @property
    def own(self) -> tuple[int, int]:
        """This process's range."""
        return self.ranges[self.rank]

    def whole(self, piece: Tensor) -> Tensor:
        """In the first process: the whole tensor, on the CPU, of its `piece` and those that the
        others of its group `give`."""
        found = torch.empty(math.prod(self.shape), dtype=piece.dtype)
        for rank, (begin, end) in enumerate(self.ranges):
            if rank == self.rank:
                found[begin:end] = piece
            elif begin < end:
                found[begin:end] = receive(piece, end - begin, rank, self.group)
        return found.view(self.shape)

    def give(self, piece: Tensor) -> None:
        """To the first process, which asks for the `whole`."""
        if len(piece):
            send(piece, 0, self.group)


class Piece(nn.Parameter):
    """This process's numbers `[n]` of a weight, in float32; what the optimiser moves."""

    place: Place


@dataclass(frozen=True)
class Spread:
    """A tensor like a weight of which each process has a piece: the weight, or a moment of it."""

    piece: Tensor
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        return self.place.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers."""
        return self.piece.dtype

    def whole(self) -> Tensor:
        """All of it, on the CPU; the others of the group must `give` theirs."""
        return self.place.whole(self.piece.detach())

    def give(self) -> None:
        """This process's piece to the first one."""
        self.place.give(self.piece.detach())


def spread(parameter: Tensor, tensor: Tensor) -> Tensor | Spread:
    """`tensor`, which is `parameter` or like it, as what is saved of it."""
    if isinstance(parameter, Piece) and tensor.shape == parameter.shape:
        return Spread(tensor, parameter.place)
    return tensor


def all_spread(parameters: Mapping[str, Tensor]) -> dict[str, Tensor | Spread]:
    """Each of `parameters` as what is saved of it."""
    return {name: spread(one, one) for name, one in parameters.items()}


def whole_bytes(tensor: Tensor | Spread) -> memoryview:
    """The memory of all of it, on the CPU, in the first process; where it is spread, the others
    `give` it."""
    found = tensor.whole() if isinstance(tensor, Spread) else tensor
    return found.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def give(tensor: Tensor | Spread) -> None:
    """Take part in the first process's `whole_bytes`."""
    if isinstance(tensor, Spread):
        tensor.give()


def range_of(parameter: Tensor, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Which numbers of a saved tensor of that `shape` belong to `parameter`; None for all."""
    if isinstance(parameter, Piece) and shape == parameter.place.shape:
        return parameter.place.own
    return None
