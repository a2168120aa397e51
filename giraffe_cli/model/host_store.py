"""Layer inputs of a GPU in pinned host memory, copied while the GPU computes.

The backward pass takes back layer by layer in the reverse order of the forward's puts, so the first
take of a layer's starts the copies of the layer below:

    compute   layer 1 | layer 2 | layer 3 ...      layer 3 | layer 2 | layer 1
    out               | 1 →     | 2 →
    in                                             ← 2     | ← 1

A copy out holds its tensor until the computing stream has been made to wait for it, two behind: the
device's memory never holds more than three tensors for it. Pinned memory is taken in blocks of
512 MiB, because torch's pool rounds each request up to a power of two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.store_base import AbstractStore, laid_out, layout_of

BLOCK = 512 << 20
"""Bytes of a pinned block."""
BEHIND = 2
"""Copies out that may be under way."""


class _Lane:
    """Copies one after the other beside what the device computes; at once where it is a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def run(self, copy: Callable[[], None], *after: Any) -> Any:
        """Start `copy` when the events `after` have come; the event of its end."""
        if self.stream is None:
            copy()
            return None
        for event in after:
            self.stream.wait_event(event)
        with torch.cuda.stream(self.stream):
            copy()
        return self.stream.record_event()


@dataclass
class _Parked:
    """A tensor in host memory."""

    pieces: list[Tensor]
    """Its bytes in order, parts of blocks."""
    layout: tuple[int, ...]
    """The axes in the order of memory."""
    shape: torch.Size
    dtype: torch.dtype
    copied: Any
    """The event of its being there."""


class HostStore(AbstractStore):
    """Keeps copies in pinned host memory of tensors on `device`."""

    def __init__(self, device: torch.device, block: int = BLOCK) -> None:
        self.device, self.block = device, block
        self.outward, self.inward = _Lane(device), _Lane(device)
        self.blocks: list[Tensor] = []
        self.used = 0
        self.parked: dict[str, _Parked] = {}
        """In the order of the puts."""
        self.leaving: deque[tuple[Tensor, Any]] = deque()
        self.coming: dict[str, tuple[Tensor, Any]] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        layout = layout_of(tensor)
        flat = tensor.detach().permute(layout).contiguous().reshape(-1).view(torch.uint8)
        pieces = self._room(flat.numel())

        def copy() -> None:
            parts = torch.split(flat, [len(piece) for piece in pieces])
            for piece, part in zip(pieces, parts, strict=True):
                piece.copy_(part, non_blocking=True)

        copied = self.outward.run(copy, self._so_far())
        self.parked[name] = _Parked(pieces, layout, tensor.shape, tensor.dtype, copied)
        self.leaving.append((flat, copied))
        self._let_go(BEHIND)

    def all_put(self) -> None:
        self._let_go(0)

    def take(self, name: str) -> Tensor:
        if name in self.parked:
            self._fetch(name)
        tensor, arrived = self.coming.pop(name)
        for following in self._wanted_next(_layer_of(name)):
            self._fetch(following)
        self._wait_for(arrived)
        if not self.parked and not self.coming:
            self.used = 0  # the next window's tensors go over this one's
        return tensor

    def _wanted_next(self, layer: str) -> list[str]:
        """What is left of `layer`, and of the layer that was put before it, the last first."""
        layers, names = {layer, *map(_layer_of, self.coming)}, []
        for name in reversed(self.parked):
            layers.add(_layer_of(name))
            if len(layers) > 2:
                break
            names.append(name)
        return names

    def _fetch(self, name: str) -> None:
        """Start the copy of a tensor back."""
        parked = self.parked.pop(name)
        shape = [parked.shape[axis] for axis in parked.layout]
        tensor = torch.empty(shape, dtype=parked.dtype, device=self.device)
        flat = tensor.reshape(-1).view(torch.uint8)

        def copy() -> None:
            parts = torch.split(flat, [len(piece) for piece in parked.pieces])
            for piece, part in zip(parked.pieces, parts, strict=True):
                part.copy_(piece, non_blocking=True)

        # the tensor's memory may still be in use by what was computed before
        arrived = self.inward.run(copy, self._so_far(), parked.copied)
        self.coming[name] = laid_out(tensor, parked.layout), arrived

    def _let_go(self, most: int) -> None:
        """Hand tensors back to the allocator, once the computation waits for their copies."""
        while len(self.leaving) > most:
            _tensor, copied = self.leaving.popleft()
            self._wait_for(copied)

    def _so_far(self) -> Any:
        """The event of all that was computed until now."""
        is_cuda = self.device.type == "cuda"
        return torch.cuda.current_stream(self.device).record_event() if is_cuda else None

    def _wait_for(self, event: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).wait_event(event)

    def _room(self, size: int) -> list[Tensor]:
        """Parts of blocks, `size` bytes together."""
        pieces = []
        pinned = self.device.type == "cuda"
        while size:
            number, offset = divmod(self.used, self.block)
            if number == len(self.blocks):
                self.blocks.append(torch.empty(self.block, dtype=torch.uint8, pin_memory=pinned))
            length = min(size, self.block - offset)
            pieces.append(self.blocks[number][offset : offset + length])
            self.used, size = self.used + length, size - length
        return pieces


def _layer_of(name: str) -> str:
    return name.split("/")[0]
