"""Tensors that wait between the forward and the backward pass, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class AbstractStore(ABC):
    """Tensors by name, each put once and taken once."""

    @abstractmethod
    def put(self, name: str, tensor: Tensor) -> None:
        """Keep `tensor`, which nobody changes afterwards."""

    @abstractmethod
    def take(self, name: str) -> Tensor:
        """The tensor of that name, on the device it came from; it is no longer kept."""
