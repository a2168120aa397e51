"""bitsandbytes: a base in 4 bits that merges into its original, and Adam's moments in 8 bits."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file
from test_stack import gradients, trained, window
from test_trained_kinds import (
    SEED,
    Crash,
    digests,
    logits,
    make_material,
    stock,
    train,
    train_config,
    trained_model,
)
from tiny_runs import ask_here

from giraffe_cli.config.lora import LORA_TARGETS
from giraffe_cli.merge import merge_stage
from giraffe_cli.model import products
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.fused import why_not_fused
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.low_bits import dense
from giraffe_cli.model.trainable import causal_model, load_base, make_trainable
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.held_out import held_out_nll
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.optimizer import make_optimizer
from giraffe_cli.train.window_loss import WindowLoss
from giraffe_cli.verify import verify_directory

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its modules call what torch 2.13 deprecates
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs giraffe-cli[quantize]")


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return make_material(tmp_path_factory.mktemp("material"), tied=True)


def quantised(material, attention="sdpa"):
    return load_base(
        material.checkpoint.path,
        train_config("lora", quantize_base="nf4"),
        dtype=torch.float32,
        table=material.table,
        attn_implementation=attention,
    )


def failures_of(material, adapter, out):
    proof = verify_directory(
        out,
        adapter_dir=adapter,
        base=material.checkpoint.path,
        table=material.table,
        reporter=SilentReporter(),
        probe=ask_here,
    )
    return {name: c for name, c in proof["checks"].items() if not c["ok"]}


def test_the_linear_layers_alone_are_4_bits(material):
    model = quantised(material)
    kinds = {
        name.rpartition(".")[2]: type(module).__name__
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    }
    assert {kinds[name] for name in ("q_proj", "o_proj", "up_proj", "down_proj")} == {"Linear4bit"}
    assert (kinds["lm_head"], kinds["embed_tokens"]) == ("Linear", "Embedding")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.numel() * weight.element_size() == 128 * 64 // 2
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_4_bit_layer_and_its_gradient_are_those_of_its_16_levels(material):
    """Every weight is one of 16 values times its block's scale, the nearest one."""
    layer = quantised(material).model.layers[0].mlp.up_proj
    weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    original = stock(material).model.layers[0].mlp.up_proj.weight
    blocks, originals = weight.reshape(-1, 64), original.reshape(-1, 64)
    assert max(len(block.unique()) for block in blocks) <= 16
    widest = originals.abs().max(1, keepdim=True).values * 0.152  # half the widest gap of NF4
    assert ((blocks - originals).abs() <= widest * 1.05).all()  # scales are in 8 bits themselves
    inputs = torch.randn(3, 64, requires_grad=True)
    layer(inputs).square().sum().backward()
    reference = inputs.detach().requires_grad_()
    (reference @ weight.t()).square().sum().backward()
    torch.testing.assert_close(inputs.grad, reference.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "levers",
    [
        Levers("none", mlp_tile=0, fused=True),
        Levers("attention", mlp_tile=16, fused=True),
        Levers("full", "disk", mlp_tile=16, projection_tile=16, fused=True, whole_layers=1),
    ],
    ids=lambda levers: levers.checkpointing,
)
@pytest.mark.parametrize("targets", [LORA_TARGETS, ["q_proj", "down_proj"]], ids=len)
def test_projections_over_4_bits_taken_together_have_the_gradients_of_those_apart(
    material, tmp_path, levers, targets
):
    """Those apart are bitsandbytes' own, under PEFT's modules; what is left is the order of sums,
    of gradients of up to 20."""
    base = quantised(material, register_attention())
    model = trained(base, {"lora": {"rank": 2, "targets": list(targets)}})
    assert why_not_fused(causal_model(model).model.layers) is None
    nats, apart = gradients(model, Levers("none", mlp_tile=0), tmp_path, window())
    found, together = gradients(model, levers, tmp_path, window())
    assert found == pytest.approx(nats, rel=1e-5)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=2e-4)


def test_4_bits_are_widened_where_a_product_needs_them_alone(material, tmp_path, monkeypatch):
    """Of a layer that is recomputed: for its result, for the result again, for the gradient below.
    Of the first layer's q, k and v nobody asks for that one, of down for the result again."""
    widened = []
    monkeypatch.setattr(
        products, "dense", lambda w, dtype: widened.append(id(w)) or dense(w, dtype)
    )
    model = trained(quantised(material, register_attention()))
    gradients(model, Levers("attention", mlp_tile=0, fused=True), tmp_path, window())
    counts = [
        {name: widened.count(id(module.base_layer.weight)) for name, module in named(layer)}
        for layer in causal_model(model).model.layers
    ]
    most = dict.fromkeys(LORA_TARGETS, 3) | {"down_proj": 2}
    assert counts == [most | dict.fromkeys(("q_proj", "k_proj", "v_proj"), 2), most]


@pytest.mark.parametrize("fused", [True, False])
def test_a_measurement_between_steps_leaves_the_4_bits_as_they_are(
    material, tmp_path, monkeypatch, fused
):
    """bitsandbytes lays them out anew in evaluation mode, on CPUs with AVX512-BF16, and a product
    over those has no gradient: 29 % of the largest one was missing after a held-out loss."""
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = trained(quantised(material, register_attention()))
    levers = Levers("attention", mlp_tile=16, fused=fused)
    before = gradients(model, levers, tmp_path, window())
    loss = WindowLoss(model, torch.float32, levers, folder=tmp_path)
    held_out_nll(loss, [window(seed=5)], Layout(), torch.device("cpu"))
    nats, found = gradients(model, levers, tmp_path, window())
    assert nats == before[0]
    assert torch.equal(found, before[1])


def named(layer):
    """Its adapted projections by their names."""
    found = ((name.rpartition(".")[2], module) for name, module in layer.named_modules())
    return [(name, module) for name, module in found if name in LORA_TARGETS]


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "longlora"])
def test_an_nf4_run_resumes_and_merges_into_the_original_base(material, tmp_path, kind):
    config = train_config(kind, quantize_base="nf4")
    adapter = train(material, tmp_path / "whole", config)
    with pytest.raises(RuntimeError, match="power cut"):
        train(material, tmp_path / "cut", config, Crash())
    assert digests(train(material, tmp_path / "cut", config)) == digests(adapter)
    out = merge_stage(
        material.checkpoint, adapter, material.table, tmp_path / "model", SilentReporter()
    )
    assert failures_of(material, adapter, out) == {}
    # what was trained stood on the coarse base: the merge moves it by what rounding to 4 bits did
    trained = logits(trained_model(material, tmp_path / "whole", config))
    rounding = (logits(quantised(material)) - logits(stock(material))).norm()
    moved = (logits(load_model(out, dtype=torch.float32)) - trained).norm()
    assert 0.1 * rounding < moved < 3 * rounding


def test_an_nf4_run_in_bfloat16(tmp_path):
    """Computed in bfloat16, trained in float32, merged into bfloat16."""
    material = make_material(tmp_path, tied=False, dtype="bfloat16")
    config = train_config("longlora", quantize_base="nf4", optimizer="adamw8bit")
    adapter = train(material, tmp_path / "run", config)
    written = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    out = merge_stage(
        material.checkpoint, adapter, material.table, tmp_path / "model", SilentReporter()
    )
    assert failures_of(material, adapter, out) == {}


def test_pissa_starts_at_the_4_bit_base(material):
    config = train_config("pissa", quantize_base="nf4")
    model = make_trainable(quantised(material), config, torch.float32, SEED)
    # W x + s B A x - s B A x: what cancels is as large as the logits, about 1
    torch.testing.assert_close(logits(model), logits(quantised(material)), atol=1e-5, rtol=0)


def test_8_bit_moments_move_the_weights_almost_as_32_bit_ones(material):
    moved = {}
    for name in ("adamw", "adamw8bit"):
        weight = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = make_optimizer({"w": weight}, train_config("lora", optimizer=name))
        for seed in range(5):
            weight.grad = torch.randn(weight.shape, generator=torch.manual_seed(seed))
            optimizer.step()
        moved[name] = weight.detach()
    state = optimizer.state[weight]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}
    distance = (moved["adamw"] - moved["adamw8bit"]).norm() / moved["adamw"].norm()
    assert 0 < distance < 0.05  # 8 bits a moment, of which the smallest lose most


@pytest.mark.parametrize("kind", ["lora", "longlora", "full"])
def test_a_run_with_8_bit_moments_that_is_cut_ends_in_the_same_bytes(material, tmp_path, kind):
    config = train_config(kind, optimizer="adamw8bit")
    whole = train(material, tmp_path / "whole", config)
    with pytest.raises(RuntimeError, match="power cut"):
        train(material, tmp_path / "cut", config, Crash())
    assert digests(train(material, tmp_path / "cut", config)) == digests(whole)
    plain = train(material, tmp_path / "plain", train_config(kind))
    assert digests(plain) != digests(whole)
