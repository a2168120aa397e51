"""Pieces of host memory on their way to a device while the one before is used."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Piece = tuple[Tensor, ...]


def fetched(pieces: Iterable[Piece], device: torch.device) -> Iterator[Piece]:
    """`pieces`, each on `device`; on a GPU the next is copied on a stream of its own meanwhile, at
    the full speed of the bus where it lies in pinned memory and in one stretch."""
    if device.type != "cuda":
        yield from (tuple(part.to(device) for part in piece) for piece in pieces)
        return
    here, aside = torch.cuda.current_stream(device), _aside(device)
    coming: deque[tuple[Piece, torch.cuda.Event]] = deque()
    for piece in pieces:
        with torch.cuda.stream(aside):
            moved = tuple(part.to(device, non_blocking=True) for part in piece)
        coming.append((moved, aside.record_event()))
        if len(coming) == 2:
            yield _arrived(*coming.popleft(), here)
    while coming:
        yield _arrived(*coming.popleft(), here)


@functools.cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One a device: the allocator keeps what each stream frees for that stream, and a new one a
    layer would hold the pieces of 32 of them."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _arrived(piece: Piece, copied: torch.cuda.Event, here: torch.cuda.Stream) -> Piece:
    """`piece`, once it is there; its memory stays taken for as long as `here` uses it."""
    here.wait_event(copied)
    for part in piece:
        part.record_stream(here)
    return piece
