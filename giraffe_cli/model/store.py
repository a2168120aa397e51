"""Where tensors wait between the forward and the backward pass: device, host memory, or a file.

    store = DiskStore(folder)
    store.put("3/input", hidden)      # forward pass of layer 3
    hidden = store.take("3/input")    # its backward pass; the store lets go of it

What is taken is bit for bit what was put, its axes in the same order in memory: cuDNN's kernels are
prepared for one order.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.model.host_store import HostStore
from giraffe_cli.model.levers import Levers, Offload
from giraffe_cli.model.store_base import AbstractStore, laid_out, layout_of


class DeviceStore(AbstractStore):
    """Keeps the tensors themselves."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        self.kept[name] = tensor

    def take(self, name: str) -> Tensor:
        return self.kept.pop(name)


class ArenaStore(AbstractStore):
    """Keeps copies in large blocks of their own; for a CPU.

    A tensor that waits for the backward pass among the short-lived ones of the C library's heap
    keeps the pages around it resident: apart from them, a step of SmolLM2's 30 layers over 1,024
    tokens adds 295 MB instead of 355.
    """

    BLOCK = 64 << 20
    """Bytes; far beyond what the heap takes (32 MB), so the block is mapped and given back."""

    def __init__(self) -> None:
        self.block = torch.empty(0, dtype=torch.uint8)
        self.used = 0
        self.kept: dict[str, Tensor] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        size = -(-tensor.nbytes // 64) * 64
        if self.used + size > len(self.block):
            self.block, self.used = torch.empty(max(size, self.BLOCK), dtype=torch.uint8), 0
        place = self.block[self.used : self.used + tensor.nbytes].view(tensor.dtype)
        self.used += size
        layout = layout_of(tensor)
        shape = [tensor.shape[axis] for axis in layout]
        self.kept[name] = laid_out(place.view(shape), layout).copy_(tensor)

    def take(self, name: str) -> Tensor:
        return self.kept.pop(name)


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes lie in the file, and what they are."""

    offset: int
    layout: tuple[int, ...]
    shape: list[int]
    """In the order of `layout`."""
    dtype: torch.dtype
    device: torch.device


class DiskStore(AbstractStore):
    """Keeps bytes in an unnamed file of a folder, which vanishes with the process."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the store
        weakref.finalize(self, self.file.close)
        self.end = 0
        self.places: dict[str, _Place] = {}

    def put(self, name: str, tensor: Tensor) -> None:
        """As the base's.

        Raises:
            GiraffeError: the disk is full.
        """
        layout = layout_of(tensor)
        lying = tensor.detach().permute(layout)
        raw = _bytes_of(lying.cpu().contiguous())
        try:
            written = 0
            while written < len(raw):
                written += os.pwrite(self.file.fileno(), raw[written:], self.end + written)
        except OSError as error:
            raise GiraffeError(
                f"{len(raw)} bytes of activations cannot be kept on disk: {error.strerror}",
                "free space in the run folder, or --set train.offload=none",
            ) from error
        self.places[name] = _Place(self.end, layout, list(lying.shape), tensor.dtype, tensor.device)
        self.end += len(raw)

    def take(self, name: str) -> Tensor:
        place = self.places.pop(name)
        tensor = torch.empty(place.shape, dtype=place.dtype)
        raw, read = _bytes_of(tensor), 0
        while read < len(raw):
            read += os.preadv(self.file.fileno(), [raw[read:]], place.offset + read)
        if not self.places:
            self.end = 0  # the next window's tensors go over this one's
        return laid_out(tensor.to(place.device), place.layout)


def make_stores(
    levers: Levers, num_layers: int, device: torch.device, folder: Path | None
) -> list[AbstractStore]:
    """Where the tensors of each layer wait: the first `offload_layers` (all of them if 0) away from
    the device; the last ones, which are wanted back soonest, on it. `disk` needs a folder.

    Raises:
        InvalidInput: `host` on a CPU, where tensors are in host memory already.
    """
    near: AbstractStore = ArenaStore() if device.type == "cpu" else DeviceStore()
    if levers.offload == "none":
        return [near] * num_layers
    far = _away(levers.offload, device, folder)
    away = levers.offload_layers or num_layers
    return [far if number < away else near for number in range(num_layers)]


def _away(offload: Offload, device: torch.device, folder: Path | None) -> AbstractStore:
    if offload == "disk":
        assert folder is not None
        return DiskStore(folder)
    if device.type == "cpu":
        raise InvalidInput(
            "offload: host has no effect on a CPU, whose tensors are in host memory",
            "--set train.offload=disk keeps them in a file",
        )
    return HostStore(device)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
