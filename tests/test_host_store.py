"""Layer inputs in host memory: what comes back, and how little of it is on the device at a time."""

from __future__ import annotations

import torch

from giraffe_cli.model.host_store import BEHIND, HostStore

CPU = torch.device("cpu")
LAYERS = 8


def filled(block: int = 1000):
    """A store after a forward pass: input, output and log-sum-exp of every layer, in that order."""
    store, made = HostStore(CPU, block), {}
    for layer in range(LAYERS):
        for name, tensor in (
            ("input", torch.randn(1, 40, 6)),
            ("out", torch.randn(1, 40, 3, 2).transpose(1, 2)),
            ("lse", torch.randn(1, 3, 40)),
        ):
            store.put(f"{layer}/{name}", tensor)
            made[f"{layer}/{name}"] = tensor.clone(memory_format=torch.preserve_format)
            assert len(store.leaving) <= BEHIND
    store.all_put()
    assert not store.leaving, "the loss, and layers kept on the device, need the room"
    return store, made


def test_everything_comes_back_as_it_was_whatever_the_blocks():
    for block in (64, 1000, 1 << 20):
        store, made = filled(block)
        assert len(store.blocks) == -(-store.used // block)
        for layer in reversed(range(LAYERS)):
            for name in ("input", "out", "lse"):
                back, was = store.take(f"{layer}/{name}"), made[f"{layer}/{name}"]
                assert torch.equal(back, was)
                assert back.stride() == was.stride()
        assert store.used == 0


def test_no_more_than_a_layer_is_fetched_ahead():
    """Each take of three once fetched four more: at 128k 50 GB were back before they were used.
    And where inputs alone wait, four tensors were four layers."""
    store, _made = filled()
    for layer in reversed(range(LAYERS)):
        for name in ("input", "out", "lse"):
            store.take(f"{layer}/{name}")
            assert {int(other[0]) for other in store.coming} <= {layer, layer - 1}
            assert {int(other[0]) for other in store.parked} == set(range(layer - 1))
        if layer:
            ahead = {f"{layer - 1}/{name}" for name in ("input", "out", "lse")}
            assert ahead == set(store.coming), "the layer below is on its way"


def test_the_blocks_are_used_again():
    store, made = filled()
    for name in reversed(made):
        store.take(name)
    blocks = len(store.blocks)
    store.put("again", tensor := torch.randn(1, 40, 6))
    assert len(store.blocks) == blocks
    assert torch.equal(store.take("again"), tensor)
