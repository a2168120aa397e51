"""Keys and values of a long past, written small, here or in host memory; the last ones as they are.

    tokens 0 ............................ closed | closed ..... all
           written in a format, by whole groups  | open: as the model gave them, at least 64

Tokens are closed when the next ones come, so what is closed has been attended to in full at least
by its own chunk. Attention reads the closed ones in pieces (`model/past.py`), which is all of them
that ever exists in the model's type. A mark remembers the open ones, because closing loses them:

    mark = kept.mark()      # after a document
    ...                     # a question and its answer
    kept.rewind(mark)       # bit for bit as it was

KIVI keeps the last 32 to 128 tokens in full for the same reason: answers depend most on them.
B batch, K key/value heads, N tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from giraffe_cli.model.fetching import fetched
from giraffe_cli.model.key_values import Mark
from giraffe_cli.model.kv_formats import GROUP, AbstractFormat

OPEN = 64
"""Tokens at least that stay as they are."""
PIECES = {"cpu": 2048, "cuda": 16384}
"""Closed tokens that are read at a time: what stays in a CPU's cache; on a GPU few launches."""


class StoredKeyValues(Cache):  # type: ignore[misc]
    """A cache of every layer's `[B, K, N, D]` in a format."""

    def __init__(self, num_layers: int, form: AbstractFormat, *, on_host: bool = False) -> None:
        """`on_host` keeps the closed tokens in the host's memory, not the device's."""
        super().__init__(layers=[StoredLayer(form, on_host) for _ in range(num_layers)])

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all."""
        for layer in self.layers:
            layer.wanted = max(layer.wanted, tokens)

    def clear(self) -> None:
        """Forget everything; the room stays."""
        self.rewind(Mark(0))

    def mark(self) -> Mark:
        """What `rewind` goes back to."""
        for layer in self.layers:
            layer.close()
        opened = tuple(layer.copied() for layer in self.layers if layer.is_initialized)
        return Mark(self.layers[0].closed, opened)

    def rewind(self, mark: Mark) -> None:
        """As it was at `mark`; what has been written since is forgotten."""
        for layer in self.layers:
            layer.closed, layer.open = mark.tokens, 0
        for layer, (keys, values) in zip(self.layers, mark.copied, strict=False):
            layer.append(keys, values)

    @property
    def num_bytes(self) -> int:
        """Of everything that is held, room that was reserved included."""
        return sum(layer.num_bytes for layer in self.layers)


class StoredLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's."""

    def __init__(self, form: AbstractFormat, on_host: bool) -> None:
        super().__init__()
        self.form, self.on_host = form, on_host
        self.wanted = self.closed = self.open = 0
        self.blocks: list[tuple[Tensor, ...]] = []
        """What the format wrote, `[G, B, K, ...]` each, with room behind it: groups of a block that
        follow one another are one stretch of memory."""
        self.tail: tuple[Tensor, ...] = ()
        """Open keys and values, with room behind them."""

    def get_seq_length(self) -> int:
        """Tokens, open ones among them."""
        return self.closed + self.open

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Close what has become old, append `[B, K, Q, D]`; the open ones `[B, K, N', D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.close()
        self.append(key_states, value_states)
        keys, values = (room[:, :, : self.open] for room in self.tail)
        return keys, values

    def pieces(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """The closed keys and values, in order, `[B, K, n, D]` each."""
        pieces = self._stretches(0, self.closed // GROUP)
        for parts in fetched(pieces, self.device) if self.on_host else pieces:
            yield self.form.read(tuple(part.movedim(0, 2) for part in parts), dtype)

    def close(self) -> None:
        """Write whole groups of what is more than `OPEN` tokens back."""
        count = (self.open - OPEN) // GROUP * GROUP
        if count <= 0:
            return
        written = self.form.write(*(room[:, :, :count] for room in self.tail))
        first, groups = self.closed // GROUP, count // GROUP
        self._make_room(written, first + groups)
        done = 0
        for parts in self._stretches(first, first + groups):
            for part, new in zip(parts, written, strict=True):
                part.copy_(new.movedim(2, 0)[done : done + len(part)])
            done += len(parts[0])
        left = tuple(room[:, :, count : self.open] for room in self.tail)
        self.closed, self.open, self.tail = self.closed + count, 0, ()
        self.append(*left)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[B, K, N, D]` behind the open ones."""
        after = self.open + keys.shape[2]
        if not self.tail or after > self.tail[0].shape[2]:
            old, room = self.tail, max(after, OPEN + GROUP)
            self.tail = tuple(
                new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (keys, values)
            )
            for part, kept in zip(self.tail, old, strict=False):
                part[:, :, : self.open] = kept[:, :, : self.open]
        for part, new in zip(self.tail, (keys, values), strict=True):
            part[:, :, self.open : after] = new
        self.open = after

    def copied(self) -> tuple[Tensor, Tensor]:
        """The open keys and values."""
        keys, values = (room[:, :, : self.open].clone() for room in self.tail)
        return keys, values

    @property
    def num_bytes(self) -> int:
        """Of everything that is held, room that is not filled yet included."""
        return sum(t.numel() * t.element_size() for t in (*chain(*self.blocks), *self.tail))

    def _stretches(self, first: int, last: int) -> Iterator[tuple[Tensor, ...]]:
        """Groups `first` to `last`, block by block."""
        start = 0
        for parts in self.blocks:
            part = slice(max(0, first - start), max(0, last - start))
            if len(parts[0][part]):
                yield tuple(one[part] for one in parts)
            start += len(parts[0])

    def _make_room(self, like: tuple[Tensor, ...], groups: int) -> None:
        """Room for so many groups, in blocks of a piece each; the last one that was reserved is
        shorter."""
        room = sum(len(parts[0]) for parts in self.blocks)
        reserved = (self.wanted - OPEN) // GROUP
        while room < groups:
            # a past nobody reserved grows by as much as there is, not group by group
            missing = reserved - room if groups <= reserved else max(groups - room, room)
            size = min(self._most(like), missing)
            self.blocks.append(tuple(self._room(size, new) for new in like))
            room += size

    def _most(self, like: tuple[Tensor, ...]) -> int:
        """Groups of a block: a piece; in pinned memory as many as the power of two of bytes below
        it holds, to which torch's pool rounds each request up."""
        piece = PIECES[self.device.type] // GROUP
        if not self._is_pinned:
            return piece
        of_group = max(new[:, :, 0].numel() * new.element_size() for new in like)
        return max(1, (1 << (piece * of_group).bit_length() - 1) // of_group)

    @property
    def _is_pinned(self) -> bool:
        return self.on_host and self.device.type == "cuda"

    def _room(self, groups: int, like: Tensor) -> Tensor:
        return torch.empty(
            (groups, *like.shape[:2], *like.shape[3:]),
            dtype=like.dtype,
            device=torch.device("cpu") if self.on_host else self.device,
            pin_memory=self._is_pinned,
        )
