"""CUDA's streams on a CPU: everything runs at once, and who must wait for whom is checked.

    with Streams() as streams:
        ...                     # code that uses `streams.torch` where it says `torch`
    assert streams.races == []

Each operator is an access to bytes from the stream that is current when it is called. Two accesses
to the same bytes, one of them a write, are a race unless an event that was recorded behind the
first had been waited for before the second, told by vector clocks. So is memory that goes back to
the allocator before the stream it was taken on has waited for all others that use it, because that
stream may be given it again at once.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COMPUTE = "compute"


class Clock(dict):
    """Stream → how many of its accesses lie behind."""

    def __missing__(self, name: str) -> int:
        return 0

    def learn(self, other: Clock) -> None:
        for name, number in other.items():
            self[name] = max(self[name], number)


@dataclass
class Event:
    stream: str
    clock: Clock


@dataclass
class Stream:
    streams: Streams
    name: str
    clock: Clock = field(default_factory=Clock)

    def record_event(self) -> Event:
        self.streams.look_for_freed()
        return Event(self.name, Clock(self.clock))

    def wait_event(self, event: Event) -> None:
        self.streams.look_for_freed()
        kind = (self.name, event.stream)
        self.streams.waits.add(kind)
        if kind != self.streams.ignored:
            self.clock.learn(event.clock)


@dataclass
class Access:
    stream: str
    number: int
    begin: int
    end: int
    is_write: bool


@dataclass
class Memory:
    """One storage."""

    alive: StorageWeakRef
    owner: Stream
    """That it was taken on, and that may be given it again once it is freed."""
    is_host: bool = False
    used_on: set[str] = field(default_factory=set)
    """Streams that the allocator itself waits for (`record_stream`)."""
    accesses: list[Access] = field(default_factory=list)


class Streams(TorchDispatchMode):
    """`ignored` is a pair (who waits, for whom) whose waits do nothing."""

    def __init__(self, ignored: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.ignored = ignored
        self.waits: set[tuple[str, str]] = set()
        self.races: list[str] = []
        self.current = Stream(self, COMPUTE)
        self.made = 0
        self.names = ("outward", "inward")
        self.memory: dict[int, Memory] = {}
        self.torch = _Torch(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.look_for_freed()
        result = func(*args, **(kwargs or {}))
        schema = func._schema
        returns = [one.alias_info for one in schema.returns]
        if any(info is not None and not info.is_write for info in returns):
            return result  # a view reads nothing
        named = dict(zip((a.name for a in schema.arguments), args, strict=False)) | (kwargs or {})
        written = {
            a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
        }
        for name, value in named.items():
            for one in tree_leaves(value):
                if isinstance(one, torch.Tensor):
                    self.access(one, name in written, str(func))
        for one in tree_leaves(result):
            if isinstance(one, torch.Tensor):
                self.access(one, True, str(func))
        return result

    def access(self, tensor: torch.Tensor, is_write: bool, what: str) -> None:
        memory = self.memory_of(tensor)
        begin = tensor.storage_offset() * tensor.element_size()
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        if 0 in tensor.shape:
            return
        here = self.current
        here.clock[here.name] += 1
        end = begin + (last + 1) * tensor.element_size()
        new = Access(here.name, here.clock[here.name], begin, end, is_write)
        for old in memory.accesses:
            apart = old.end <= new.begin or new.end <= old.begin
            if apart or not (old.is_write or new.is_write):
                continue
            if here.clock[old.stream] < old.number:
                verbs = ["read", "written"]
                self.races.append(
                    f"{what} on {here.name}: {verbs[is_write]} before {old.stream} has "
                    f"{verbs[old.is_write]} it"
                )
        memory.accesses = [
            old
            for old in memory.accesses
            if not (old.stream == new.stream and old.is_write <= is_write and _within(old, new))
        ]
        memory.accesses.append(new)

    def memory_of(self, tensor: torch.Tensor) -> Memory:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.memory:
            self.memory[storage._cdata] = Memory(StorageWeakRef(storage), self.current)
        return self.memory[storage._cdata]

    def look_for_freed(self) -> None:
        """Whether memory that is gone by now was still in use elsewhere."""
        for key, memory in list(self.memory.items()):
            if not memory.alive.expired():
                continue
            del self.memory[key]
            for access in memory.accesses:
                known = memory.owner.clock[access.stream] >= access.number
                if not (memory.is_host or known or access.stream in memory.used_on):
                    self.races.append(f"freed before {access.stream} was done with it")

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Any:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def new_stream(self, device: Any = None) -> Stream:
        self.made += 1
        return Stream(self, self.names[(self.made - 1) % len(self.names)])


class _Torch:
    """torch, but that a CUDA device's memory is the CPU's and its streams are these."""

    def __init__(self, streams: Streams) -> None:
        self.cuda = SimpleNamespace(
            Stream=streams.new_stream,
            Event=Event,
            stream=streams.on,
            current_stream=lambda device=None: streams.current,
        )
        self._streams = streams

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, pin_memory: bool = False, device: Any = None, **kind: Any) -> Any:
        made = torch.empty(*size, **kind)
        self._streams.memory_of(made).is_host = pin_memory
        return made


def _within(old: Access, new: Access) -> bool:
    return new.begin <= old.begin and old.end <= new.end
