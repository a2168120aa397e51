"""Layer inputs of a GPU in pinned host memory, copied while the GPU computes.

The backward pass takes back in about the reverse order of the forward's puts, so each take starts
the copies of what was put just before:

    compute   layer 1 | layer 2 | layer 3 ...      layer 3 | layer 2 | layer 1
    out               | 1 →     | 2 →
    in                                             ← 2     | ← 1

A copy out holds its tensor until the computing stream has been made to wait for it, two behind: the
device's memory never holds more than three tensors for it. Pinned memory is taken in blocks of
512 MiB, because torch's pool rounds each request up to a power of two.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from giraffe_cli.model.store_base import AbstractStore

BLOCK = 512 << 20
"""Bytes of a pinned block."""
BEHIND = 2
"""Copies out that may be under way."""
AHEAD = 4
"""Tensors that are fetched before they are asked for: a layer's input, output and log-sum-exp."""


@dataclass
class _Parked:
    """A tensor in host memory."""

    pieces: list[Tensor]
    """Its bytes in order, parts of pinned blocks."""
    layout: tuple[int, ...]
    """The axes in the order of memory."""
    shape: torch.Size
    dtype: torch.dtype
    copied: torch.cuda.Event
    """When it is there."""


class HostStore(AbstractStore):
    """Keeps copies in pinned host memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.outward, self.inward = torch.cuda.Stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.blocks: list[Tensor] = []
        self.used = 0
        self.parked: dict[str, _Parked] = {}
        """In the order of the puts."""
        self.leaving: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        self.coming: dict[str, tuple[Tensor, torch.cuda.Event]] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        here = torch.cuda.current_stream(self.device)
        layout = _layout(tensor)
        flat = tensor.detach().permute(layout).contiguous().reshape(-1).view(torch.uint8)
        self.outward.wait_event(here.record_event())
        pieces, start = self._room(flat.numel()), 0
        with torch.cuda.stream(self.outward):
            for piece in pieces:
                piece.copy_(flat[start : start + len(piece)], non_blocking=True)
                start += len(piece)
        copied = self.outward.record_event()
        self.parked[name] = _Parked(pieces, layout, tensor.shape, tensor.dtype, copied)
        self.leaving.append((flat, copied))
        self._let_go(here, BEHIND)

    def take(self, name: str) -> Tensor:
        here = torch.cuda.current_stream(self.device)
        self._let_go(here, 0)
        self._fetch(name, here)
        tensor, arrived = self.coming.pop(name)
        for wanted in list(reversed(self.parked))[:AHEAD]:
            self._fetch(wanted, here)
        here.wait_event(arrived)
        if not self.parked and not self.coming:
            self.used = 0  # the next window's tensors go over this one's
        return tensor

    def _fetch(self, name: str, here: torch.cuda.Stream) -> None:
        """Start the copy of a tensor back, unless it is under way."""
        parked = self.parked.pop(name, None)
        if parked is None:
            return
        shape = [parked.shape[axis] for axis in parked.layout]
        tensor = torch.empty(shape, dtype=parked.dtype, device=self.device)
        flat, start = tensor.reshape(-1).view(torch.uint8), 0
        # the memory may still be in use by what was computed before
        self.inward.wait_event(here.record_event())
        self.inward.wait_event(parked.copied)
        with torch.cuda.stream(self.inward):
            for piece in parked.pieces:
                flat[start : start + len(piece)].copy_(piece, non_blocking=True)
                start += len(piece)
        back = [parked.layout.index(axis) for axis in range(len(shape))]
        self.coming[name] = tensor.permute(back), self.inward.record_event()

    def _let_go(self, here: torch.cuda.Stream, most: int) -> None:
        """Hand tensors back to the allocator, once `here` waits for their copies."""
        while len(self.leaving) > most:
            _tensor, copied = self.leaving.popleft()
            here.wait_event(copied)

    def _room(self, size: int) -> list[Tensor]:
        """Parts of blocks, `size` bytes together."""
        pieces = []
        while size:
            number, offset = divmod(self.used, BLOCK)
            if number == len(self.blocks):
                self.blocks.append(torch.empty(BLOCK, dtype=torch.uint8, pin_memory=True))
            length = min(size, BLOCK - offset)
            pieces.append(self.blocks[number][offset : offset + length])
            self.used, size = self.used + length, size - length
        return pieces


def _layout(tensor: Tensor) -> tuple[int, ...]:
    """The axes from the widest stride to the narrowest: attention's output is [B, H, S, D] as a
    view of [B, S, H, D], and comes back as it was."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis)))
