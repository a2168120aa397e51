"""Keys and values of the tokens read so far, in room that is taken once.

transformers' `DynamicCache` copies all of them for each piece that is appended: at 16k tokens a
bfloat16 token of a 135M model costs 0.4 GB of copies. Here they are written behind one another:

    kept = KeyValues(num_layers)
    kept.reserve(4096)      # room for so many tokens; grows by itself when that was too few
    feed(model, ids, kept)  # model/reading.py
    kept.cut(2048)          # forget all but the first 2048; nothing moves

B batch, K key/value heads, N tokens, D head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class Mark(NamedTuple):
    """A place in a cache to come back to."""

    tokens: int
    """Those that stay where they are."""
    copied: tuple[tuple[Tensor, Tensor], ...] = ()
    """Keys and values behind them that would not stay, layer by layer."""


class KeyValues(Cache):  # type: ignore[misc]
    """A cache of every layer's `[B, K, N, D]`."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_Room() for _ in range(num_layers)])

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` in all; what is there stays."""
        for layer in self.layers:
            layer.reserve(tokens)

    def cut(self, tokens: int) -> None:
        """Keep the first `tokens`."""
        for layer in self.layers:
            layer.cut(tokens)

    def clear(self) -> None:
        """Forget everything; the room stays."""
        self.cut(0)

    @property
    def num_bytes(self) -> int:
        """Of everything that is held, room that was reserved included."""
        rooms = [part for layer in self.layers for part in layer.room or ()]
        return sum(room.numel() * room.element_size() for room in rooms)

    def mark(self) -> Mark:
        """What `rewind` goes back to."""
        return Mark(int(self.get_seq_length()))

    def rewind(self, mark: Mark) -> None:
        """As it was at `mark`."""
        self.cut(mark.tokens)

    def part(self, start: int, stop: int, room_after: int) -> KeyValues:
        """A copy of tokens `start` to `stop`, with room for so many more."""
        found = KeyValues(len(self.layers))
        found.reserve(stop - start + room_after)
        for layer, own in zip(self.layers, found.layers, strict=True):
            own.update(layer.keys[:, :, start:stop], layer.values[:, :, start:stop])
        return found

    def pretend(self, tokens: int) -> None:
        """As if `tokens` had been read after what was, with keys of zero: to time what follows."""
        self.reserve(tokens)
        for layer in self.layers:
            layer.pretend(tokens)


class _Room(DynamicLayer):  # type: ignore[misc]
    """One layer's; `keys` and `values` are views of the start of the room."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted = 0
        self.room: tuple[Tensor, Tensor] | None = None

    @property
    def capacity(self) -> int:
        return 0 if self.room is None else self.room[0].shape[2]

    def reserve(self, tokens: int) -> None:
        self.wanted = max(self.wanted, tokens)
        if self.room is not None and self.wanted > self.capacity:
            self._take(*self.room)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append `[B, K, Q, D]`; all `[B, K, N, D]`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        if after > self.capacity:
            self.wanted = max(after, self.wanted)
            self._take(key_states, value_states)
        self._show(after)
        self.keys[:, :, before:] = key_states
        self.values[:, :, before:] = value_states
        return self.keys, self.values

    def cut(self, tokens: int) -> None:
        if self.room is not None:
            self._show(min(tokens, self.get_seq_length()))

    def pretend(self, tokens: int) -> None:
        before = self.get_seq_length()
        self._show(tokens)
        self.keys[:, :, before:] = 0
        self.values[:, :, before:] = 0

    def _take(self, *like: Tensor) -> None:
        """Room for `wanted` tokens shaped as `like`; what was kept moves into it."""
        kept = self.get_seq_length()
        new = [part.new_empty(*part.shape[:2], self.wanted, part.shape[3]) for part in like]
        if kept:
            new[0][:, :, :kept] = self.keys
            new[1][:, :, :kept] = self.values
        self.room = new[0], new[1]
        self._show(kept)

    def _show(self, tokens: int) -> None:
        assert self.room is not None
        self.keys, self.values = (part[:, :, :tokens] for part in self.room)
