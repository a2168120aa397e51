"""Copies beside the computation, in an order that streams and events enforce; without a card.

Whether a wait is missing shows on a card as numbers that are wrong once in a while. Here every
operator of a layer's forward and backward pass and every copy is held against all others of the
same bytes, and each kind of wait is left out once to see that its absence is told.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from streams import COMPUTE, Streams
from test_training_gpu import SHAPES, trained, window

from giraffe_cli.model import fetching, host_store, stack
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.store import DeviceStore
from giraffe_cli.train.setup import trainable_parameters
from giraffe_cli.train.window_loss import WindowLoss

CUDA = torch.device("cuda")
LEVERS = {
    "inputs": Levers("full", "host", fused=True),
    "inputs and attention": Levers("attention", "host", mlp_tile=50, fused=True),
    "unfused": Levers("attention", "host", mlp_tile=50),
    "tiles": Levers("attention", "host", mlp_tile=50, projection_tile=40, fused=True),
    "groups": Levers(
        "attention", "host", mlp_tile=50, projection_tile=40, head_groups=3, fused=True
    ),
    "some": Levers("attention", "host", mlp_tile=50, offload_layers=2, fused=True),
}
KINDS = {
    (COMPUTE, "outward"): "memory is handed back while it is copied out",
    (COMPUTE, "inward"): "a tensor is used before it is back",
    ("outward", COMPUTE): "a tensor is copied before it is computed",
    ("inward", COMPUTE): "a tensor is fetched into memory that is still in use",
}
IMPLIED = ("inward", "outward")
"""The first take makes the computation wait for all that leaves, and fetching waits for it."""


@pytest.fixture
def pass_over(monkeypatch):
    """Loss and gradients of two windows, one after the other, and what their streams did."""

    def run(levers, ignored=None):
        streams = Streams(ignored)
        monkeypatch.setattr(host_store, "torch", streams.torch)

        def stores(given, count, device, folder):
            far = host_store.HostStore(CUDA, block=100_000)
            near = DeviceStore()
            away = given.offload_layers or count
            return [far if number < away else near for number in range(count)]

        monkeypatch.setattr(stack, "make_stores", stores)
        monkeypatch.setitem(SHAPES, "small", (48, 6, 3, 8))
        model = trained("small", torch.float32, torch.device("cpu"))
        loss = WindowLoss(model, torch.float32, levers)
        parameters = trainable_parameters(loss)
        with streams:
            for seed in (0, 1):
                loss(*window((70, 58), seed), (70, 58)).backward()
        return torch.cat([p.grad.reshape(-1) for p in parameters.values()]), streams

    return run


@pytest.mark.parametrize("name", LEVERS)
def test_no_copy_races_with_what_is_computed(pass_over, name):
    grads, streams = pass_over(LEVERS[name])
    assert streams.races == []
    assert streams.waits == {*KINDS, IMPLIED}
    one_layer = dataclasses.replace(LEVERS[name], offload_layers=1)
    assert torch.equal(grads, pass_over(one_layer)[0])


@pytest.mark.parametrize("kind", KINDS, ids=KINDS.get)
def test_a_wait_that_is_left_out_is_a_race(pass_over, kind):
    assert pass_over(LEVERS["inputs and attention"], kind)[1].races


class Part:
    """A piece of the host's memory, whose copy lies on the device."""

    def __init__(self, streams, tensor, is_recorded):
        self.streams, self.tensor, self.is_recorded = streams, tensor, is_recorded

    def to(self, device, non_blocking):
        assert non_blocking
        return Part(self.streams, self.tensor.clone(), self.is_recorded)

    def record_stream(self, stream):
        if self.is_recorded:
            self.streams.memory_of(self.tensor).used_on.add(stream.name)


def read_by_pieces(monkeypatch, ignored=None, is_recorded=True):
    """What five pieces of the host's memory add up to, and what the streams did."""
    streams = Streams(ignored)
    streams.names = ("aside",)
    monkeypatch.setattr(fetching, "torch", streams.torch)
    made = [torch.full((4,), float(n)) for n in range(5)]
    with streams:
        pieces = ((Part(streams, one, is_recorded),) for one in made)
        read = [float(part.tensor.sum()) for (part,) in fetching.fetched(pieces, CUDA)]
    return read, streams.races


def test_pieces_of_the_past_are_there_before_they_are_read(monkeypatch):
    assert read_by_pieces(monkeypatch) == ([0.0, 4.0, 8.0, 12.0, 16.0], [])
    assert read_by_pieces(monkeypatch, ignored=(COMPUTE, "aside"))[1]
    assert read_by_pieces(monkeypatch, is_recorded=False)[1]
