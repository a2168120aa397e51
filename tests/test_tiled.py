"""A layer of which only attention sees the whole window: what lives at a time, and what is redone.

That it gives the gradients of autograd is `test_stack.py`'s, with the other levers.
"""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.fused import FusedLayer
from giraffe_cli.model.kernels import CpuKernel, Kernels
from giraffe_cli.model.layer_base import AbstractLayer, Attending
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.plain import PlainLayer
from giraffe_cli.model.products import products
from giraffe_cli.model.stack import run_layers
from giraffe_cli.model.trainable import causal_model, make_trainable

TOKENS, WIDTH, LAYERS = 5120, 128, 1
"""With 4 heads of 32 over 2 of keys; one tensor of the window has 2.6 MB in float32, besides which
attention's blocks on a CPU, a megabyte a thread, are small."""
ROW = TOKENS * WIDTH * 4
RESULT_BYTES = 4 * 12347
"""Of a tensor that marks where the backward pass begins."""


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=8,
        attn_implementation=register_attention(),
    )
    train = TrainConfig.model_validate({"lora": {"rank": 2}})
    made = make_trainable(LlamaForCausalLM(config), train, torch.float32, seed=0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return causal_model(made).train()


def attending(model, hidden, kernels=None):
    where = torch.arange(hidden.shape[1])[None]
    settings = {"cu_seqlens": torch.tensor([0, hidden.shape[1]], dtype=torch.int32)}
    rotary = model.model.rotary_emb(hidden, position_ids=where)
    return Attending(rotary, {**settings, "kernels": kernels})


def forward(model, levers, kind: type[AbstractLayer] = PlainLayer, tokens=TOKENS, kernels=None):
    hidden = torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    hidden.requires_grad_()
    layers = [kind(layer) for layer in model.model.layers]
    given = attending(model, hidden.detach(), kernels)
    return run_layers(layers, hidden, given, levers, contextlib.nullcontext)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def live_rows(model, levers, kind):
    """Most bytes of tensors that the backward pass adds to what the forward left, in rows."""
    torch.autograd.backward(out := forward(model, levers, kind), torch.ones_like(out))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        out = forward(model, levers, kind)
        grad = torch.ones_like(out)
        torch.empty(RESULT_BYTES // 4)
        torch.autograd.backward(out, grad)
    events = profiled.profiler.kineto_results.events()
    told = sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns())
    changes = [event.nbytes() for event in told]
    begin = changes.index(RESULT_BYTES)
    live = torch.tensor(changes[begin:]).cumsum(0)
    return live.max().item() / ROW


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", [PlainLayer, FusedLayer])
def test_as_much_lives_at_a_time_as_it_says(model, kind):
    """In rows of S·d numbers, queries as many and keys half of it: q, k, v and the gradient of what
    was attended to are 3, the attention computed again 1, and of one of two groups of heads the
    gradients 1, of all heads 2. The layer's own gradient was there before and is written over.
    Tiles of 64 tokens and attention's blocks add less than half a row. In one piece it is 7: what
    the projections read stays, and the gradients of all heads and of what they came from are there
    together; of the residual's gradient and the layer's middle nothing is (9 when they were)."""
    tiled = Levers("full", mlp_tile=64, projection_tile=64, fused=kind is FusedLayer)
    grouped = dataclasses.replace(tiled, head_groups=2)
    assert 4.5 < live_rows(model, grouped, kind) < 5.5
    assert 5.5 < live_rows(model, tiled, kind) < 6.5
    whole = Levers("full", mlp_tile=64, fused=kind is FusedLayer)
    assert 7 < live_rows(model, whole, kind) < 8


def test_fused_going_back_through_the_projections_needs_no_products(model):
    """The gradients of the input and of the adapters, against autograd's through the layer."""
    layer = model.model.layers[0]
    hidden = torch.randn(1, 6, WIDTH)
    rotary = attending(model, hidden).position_embeddings
    shapes = [(1, 6, 4, 32), (1, 6, 2, 32), (1, 6, 2, 32)]
    slopes = tuple(torch.randn(shape) for shape in shapes)
    found = []
    for kind in (PlainLayer, FusedLayer):
        model.zero_grad(set_to_none=True)
        below = kind(layer).project_backward(hidden, rotary, slopes, contextlib.nullcontext, True)
        trained = [p.grad for p in layer.parameters() if p.grad is not None]
        assert len(trained) == 6, "A and B of q, k and v"
        found.append([below, *trained])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)  # sums of 128 in float32


def test_fused_going_back_through_the_mlp_needs_no_last_product(model, monkeypatch):
    """The gradients, against autograd's through the layer; and of the three products two."""
    layer = model.model.layers[0]
    hidden, slope = torch.randn(1, 6, WIDTH), torch.randn(1, 6, WIDTH)
    found, computed = [], []

    def noted(rows, modules, valued=True):
        computed.extend([valued] * len(modules))
        return products(rows, modules, valued=valued)

    monkeypatch.setattr("giraffe_cli.model.fused.products", noted)
    for kind in (PlainLayer, FusedLayer):
        model.zero_grad(set_to_none=True)
        below = kind(layer).mlp_backward(hidden, slope, contextlib.nullcontext)
        trained = [p.grad for p in layer.parameters() if p.grad is not None]
        assert len(trained) == 6, "A and B of gate, up and down"
        found.append([below, *trained])
    for ours, theirs in zip(*found, strict=True):
        # sums of 256 in float32, in another order
        torch.testing.assert_close(ours, theirs, atol=1e-6 * theirs.abs().max().item(), rtol=1e-4)
    assert computed == [True, True, False]


@pytest.mark.parametrize(("checkpointing", "passes"), [("attention", 1), ("full", 2)])
def test_attention_is_computed_as_often_as_promised(model, monkeypatch, checkpointing, passes):
    """Of each group of two query heads over one of keys."""
    shapes, real = [], CpuKernel.forward
    monkeypatch.setattr(
        CpuKernel,
        "forward",
        lambda self, given: shapes.append(given.query.shape) or real(self, given),
    )
    levers = Levers(checkpointing, mlp_tile=4, projection_tile=8, head_groups=2)
    out = forward(model, levers, tokens=24, kernels=Kernels.named("cpu"))
    torch.autograd.backward(out, torch.ones_like(out))
    assert shapes == [(1, 2, 24, 32)] * (passes * LAYERS * 2)


@pytest.mark.parametrize("kind", [PlainLayer, FusedLayer])
def test_no_projection_sees_more_tokens_than_its_tile(model, kind):
    """Queries by 8 tokens, attention's output with the MLP's by 5; the plain layer computes queries
    up, down, and once more for their gradients, the fused one calls no module."""
    seen: dict[str, list[int]] = {"q_proj": [], "o_proj": []}
    attention = model.model.layers[0].self_attn
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda module, args, out, name=name: seen[name].append(out.shape[1])
        )
        for name in seen
    ]
    levers = Levers("attention", mlp_tile=5, projection_tile=8, fused=kind is FusedLayer)
    out = forward(model, levers, kind, tokens=20)
    torch.autograd.backward(out, torch.ones_like(out))
    for hook in hooks:
        hook.remove()
    if kind is PlainLayer:
        assert seen == {"q_proj": [8, 8, 4] * 3, "o_proj": [5] * 8}
    else:
        assert seen == {"q_proj": [], "o_proj": []}
