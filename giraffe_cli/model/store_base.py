"""Tensors that wait between the forward and the backward pass, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


def layout_of(tensor: Tensor) -> tuple[int, ...]:
    """The axes from the widest stride to the narrowest: attention's output is [B, H, S, D] as a
    view of [B, S, H, D], and comes back as it was."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis)))


def laid_out(tensor: Tensor, layout: tuple[int, ...]) -> Tensor:
    """A tensor whose axes lie in memory in the order of `layout`, with its axes in their own."""
    return tensor.permute([layout.index(axis) for axis in range(len(layout))])


class AbstractStore(ABC):
    """Tensors by name, `layer/what`, each put once and taken once."""

    @abstractmethod
    def put(self, name: str, tensor: Tensor) -> None:
        """Keep `tensor`, which nobody changes afterwards."""

    def all_put(self) -> None:  # noqa: B027 - most have nothing to finish
        """The forward pass is over: nothing more is put before the next take."""

    @abstractmethod
    def take(self, name: str) -> Tensor:
        """The tensor of that name, on the device it came from and laid out as it was; it is no
        longer kept."""
