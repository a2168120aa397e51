"""Weights that are trained and shared out: each process moves 1/N of them and keeps its moments.

    forward    a layer's matrices are gathered from the float32 parts, in the computation's dtype;
               embeddings and head in float32, so that a token's many gradients add up in it
    backward   a layer's gradients are summed over the processes as soon as they are whole, while
               the next layer goes back; each process keeps the sum of its own part
    step       the optimiser moves this process's pieces alone

What ZeRO calls its third stage (arXiv:1910.02054). Norms and biases are whole in every process, and
summed once a step (`train/gradients.py`). A step's windows are summed one by one, in float32.

    layer 0    |q_proj      |k_proj|v_proj|o_proj      |…    the numbers of all, end to end
    process    |0              |1              |2      |…    has a `Piece` of each weight here
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from giraffe_cli.model.collectives import sum_of_part
from giraffe_cli.model.pieces import Piece, Place
from giraffe_cli.model.sharded import ShardedBase


class TrainedShard:
    """One layer's trained matrices, of which this process has a part in float32; `pieces` lie in
    it."""

    def __init__(
        self,
        master: Tensor,
        weights: Mapping[str, nn.Parameter],
        offsets: Sequence[int],
        rank: int,
        processes: int,
        group: Any = None,
    ) -> None:
        """`master` [n] float32; `offsets` in bytes, of weights in the computation's dtype."""
        self.master, self.weights, self.offsets = master, tuple(weights.values()), tuple(offsets)
        self.dtype, self.processes = self.weights[0].dtype, processes
        self.gradient: Tensor | None = None
        """[N·n] float32, of the window that goes back; None before anything has come."""
        self.pieces: dict[str, Piece] = {}
        self.begins: list[int] = []
        """Where each piece begins in `master`."""
        for (name, weight), offset in zip(weights.items(), offsets, strict=True):
            first, size = offset // self.dtype.itemsize, len(master)
            ranges = tuple(_range(r * size - first, size, weight.numel()) for r in range(processes))
            begin, end = ranges[rank]
            at = max(0, first - rank * size)
            piece = Piece(master[at : at + end - begin])
            piece.place = Place(tuple(weight.shape), ranges, rank, group)
            self.pieces[name] = piece
            self.begins.append(at)
            collector: Any = _Collector(self, first)
            weight.requires_grad_().register_post_accumulate_grad_hook(collector)  # type: ignore[no-untyped-call]

    @property
    def part(self) -> Tensor:
        """[n] uint8: this process's part in the computation's dtype."""
        return self.master.to(self.dtype).view(torch.uint8)

    def take_gradient(self) -> Tensor:
        """What has come since the last call, zeros where nothing has."""
        found, self.gradient = self.gradient, None
        return self._room() if found is None else found

    def collect(self, first: int, gradient: Tensor) -> None:
        """Add a weight's `gradient`, whose numbers begin at `first`."""
        if self.gradient is None:
            self.gradient = self._room()
        self.gradient[first : first + gradient.numel()] += gradient.reshape(-1)

    def keep(self, part: Tensor) -> None:
        """Add the sum of this process's part `[n]` to the gradients of its pieces."""
        for piece, at in zip(self.pieces.values(), self.begins, strict=True):
            if piece.grad is None:
                piece.grad = torch.zeros_like(piece)
            piece.grad += part[at : at + len(piece)]

    def _room(self) -> Tensor:
        return self.master.new_zeros(self.processes * len(self.master))


def _range(begin: int, size: int, numbers: int) -> tuple[int, int]:
    """What lies in `begin` to `begin + size` of so many `numbers`."""
    first, last = max(begin, 0), min(begin + size, numbers)
    return (first, last) if first < last else (0, 0)


class _Collector:
    """Takes a weight's gradient from it, whenever there is one; an object, so that models copy."""

    def __init__(self, shard: TrainedShard, first: int) -> None:
        self.shard, self.first = shard, first

    def __call__(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.shard.collect(self.first, weight.grad)
        weight.grad = None


class TrainedBase(ShardedBase):
    """A `ShardedBase` of `TrainedShard`s."""

    def __init__(
        self,
        shards: Sequence[TrainedShard],
        line: Sequence[int | None],
        processes: int,
        rank: int,
        group: Any = None,
    ) -> None:
        super().__init__(shards, line, processes, group)
        self.trained, self.rank = list(shards), rank
        self.peers: Any = None
        """The processes of other machines with the same pieces; None without such."""
        self.leaving: tuple[TrainedShard, Tensor, Any, Tensor] | None = None
        """Whose gradients are being summed, these, which must not be let go of before, the work,
        and where this process's part of the sum will be."""

    @property
    def pieces(self) -> dict[str, Piece]:
        """By the names of the weights."""
        return {name: piece for shard in self.trained for name, piece in shard.pieces.items()}

    def held_here(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`parameters` of the model, a `Piece` in the place of each that is shared out."""
        found: dict[Tensor, Tensor] = {
            weight: piece
            for shard in self.trained
            for weight, piece in zip(shard.weights, shard.pieces.values(), strict=True)
        }
        return {name: found.get(weight, weight) for name, weight in parameters.items()}

    def end_backward(self) -> None:
        """The backward pass of a window is over: what is left of its gradients is summed."""
        if self.place > 0:
            self._sum(self.line[self.place])
            self._sum(self.line[0])
        self._keep_sums()
        self.place = 0

    def moved(self) -> None:
        """The pieces are not what they were: what was gathered of them is let go of."""
        for slot, number in enumerate(self.held):
            if number is not None:
                self._arrive(slot)
                self._let_go(self.shards[number])
        self.held = [None, None]

    def _take(self, place: int, following: int) -> None:
        before = self.place
        super()._take(place, following)
        # on the way back: the layer above is done. A head that is the embeddings is not yet:
        # autograd hands on what both leave together
        if 0 < place < before and self.line[before] != self.line[0]:
            self._sum(self.line[before])

    def _sum(self, number: int | None) -> None:
        if number is None:
            return
        shard = self.trained[number]
        gradient = shard.take_gradient()
        self._keep_sums()
        self.leaving = (shard, gradient, *sum_of_part(gradient, self.rank, self.group))

    def _keep_sums(self) -> None:
        if self.leaving is None:
            return
        shard, _, work, part = self.leaving
        work.wait()
        shard.keep(part)
        self.leaving = None
