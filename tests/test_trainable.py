"""What is trained, and that every use of a weight reaches its gradient: against stock autograd."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import build_tiny_llama
from pydantic import ValidationError

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.lora import LoraConfig
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.lora import add_lora
from giraffe_cli.model.pissa import lora_layers
from giraffe_cli.model.trainable import causal_model, head_weight, make_trainable, state_parameters
from giraffe_cli.rope.base import make_table
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.optimizer import make_optimizer, parameter_groups, set_rate
from giraffe_cli.train.setup import build_model, trainable_parameters

IDS = torch.arange(5, 55)[None]
METHODS = {
    "full": {"method": "full"},
    "longlora": {"lora": {"rank": 2, "also_train": ["embeddings", "norms"]}},
    "embeddings": {"lora": {"rank": 2, "also_train": ["embeddings"]}},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {
        tied: build_tiny_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=tied)
        for tied in (True, False)
    }


def load(base, dtype=torch.float32, **options):
    return load_model(base, dtype=dtype, **options)


def loss_model(base, config, dtype="float32"):
    checkpoint = inspect(str(base), base)
    table = make_table("linear", {}, checkpoint.head(512))
    train = TrainConfig.model_validate({**config, "loss_chunk": 7})
    levers = Levers.asked_for(train)
    return build_model(
        TrainJob(checkpoint, table, base, train, "plain", 512, dtype, 3, base, levers=levers)
    )


def backward(model):
    """Loss and gradients of one document; the names are the base's."""
    labels = torch.cat([IDS[0, 1:], torch.tensor([-100])])
    nats = model(IDS, labels, torch.arange(50)[None], (50,)) / 49
    nats.backward()
    prefixes = ("model.base_model.model.", "model.")
    gradients = {}
    for name, parameter in trainable_parameters(model).items():
        prefix = next(p for p in prefixes if name.startswith(p))
        gradients[name.removeprefix(prefix).replace(".modules_to_save.default", "")] = (
            parameter.grad
        )
    return nats.item(), gradients


def stock_backward(base, table):
    model = load(base, table=table, attn_implementation="eager")
    loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["none", "attention", "full"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_stock_transformers(bases, method, tied, checkpointing):
    """A fresh adapter adds nothing, so that every whole tensor has the plain model's gradient; of a
    tied one both uses, as embeddings and as head, must have arrived."""
    config = {**METHODS[method], "checkpointing": checkpointing}
    config |= {} if checkpointing == "none" else {"mlp_tile": 16}
    found_loss, found = backward(loss_model(bases[tied], config))
    checkpoint = inspect(str(bases[tied]), bases[tied])
    expected_loss, expected = stock_backward(
        bases[tied], make_table("linear", {}, checkpoint.head(512))
    )
    assert found_loss == pytest.approx(expected_loss, rel=1e-6)
    whole = {name: grad for name, grad in found.items() if "lora_" not in name}
    assert len(whole) == {"full": 20 + (not tied), "longlora": 6, "embeddings": 1}[method]
    for name, gradient in whole.items():
        # float32 sums in another order; gradients here are 1e-4 to 1e-1
        torch.testing.assert_close(gradient, expected[name], atol=2e-7, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "lora"])
def test_the_head_weight_is_the_one_in_force(bases, method, tied):
    config = TrainConfig.model_validate(METHODS.get(method, {"lora": {"rank": 2}}))
    model = make_trainable(load(bases[tied]), config, torch.float32, seed=0)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            if parameter.ndim == 2:
                parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(1)) * 0.1)
    head = head_weight(model)
    hidden = []
    inner = causal_model(model)
    handle = inner.model.register_forward_hook(lambda m, a, out: hidden.append(out[0]))
    with torch.no_grad():
        expected = inner(IDS, use_cache=False).logits
    handle.remove()
    assert torch.equal(hidden[0] @ head.t(), expected)
    assert head.requires_grad is (method == "full" or (tied and method != "lora"))
    is_embeddings = head is inner.get_input_embeddings().weight
    assert is_embeddings is tied


@pytest.mark.parametrize("method", METHODS)
def test_under_bfloat16_masters_are_float32_and_activations_are_not(bases, method):
    model = loss_model(bases[True], METHODS[method], "bfloat16")
    assert {p.dtype for p in trainable_parameters(model).values()} == {torch.float32}
    seen = []
    for layer in causal_model(model.model).model.layers:
        layer.input_layernorm.register_forward_hook(
            lambda module, arguments, out: seen.extend([arguments[0].dtype, out.dtype])
        )
    loss, gradients = backward(model)
    assert set(seen) == {torch.bfloat16}
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    exact, _ = backward(loss_model(bases[True], METHODS[method]))
    assert loss == pytest.approx(exact, rel=1e-2)  # 8 bits of mantissa


def test_only_what_was_asked_for_trains(bases):
    names = {
        part: {
            name.rpartition(".modules_to_save")[0].rpartition(".")[2]
            for name in trainable_parameters(
                add_lora(load(bases[True]), LoraConfig(rank=2, also_train=part), 0)
            )
            if "lora_" not in name
        }
        for part in (("embeddings",), ("norms",))
    }
    assert names["embeddings",] == {"embed_tokens"}
    assert names["norms",] == {"input_layernorm", "post_attention_layernorm", "norm"}


# ── PiSSA ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_starts_as_the_base_from_its_largest_directions(bases, rslora):
    plain = load(bases[True])
    with torch.no_grad():
        expected = plain(IDS, use_cache=False).logits
        settings = LoraConfig(rank=4, alpha=8, init_lora_weights="pissa", use_rslora=rslora)
        model = add_lora(load(bases[True]), settings, seed=0)
        # W x + s B A x - s B A x: what cancels is as large as the logits, about 1
        torch.testing.assert_close(model(IDS, use_cache=False).logits, expected, atol=1e-5, rtol=0)
    layer = next(lora_layers(model))
    weight = layer.get_base_layer().weight
    assert torch.equal(weight, plain.model.layers[0].self_attn.q_proj.weight)
    scaling = 8 / (2 if rslora else 4)
    part = scaling * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    best = torch.linalg.svdvals(weight)[4:].square().sum().sqrt()  # Eckart and Young
    # 64 singular values that fall slowly: the randomised SVD comes within 1 in 1,000
    assert (weight - part).norm().item() == pytest.approx(best.item(), rel=1e-3)
    trained = trainable_parameters(model)
    assert len(trained) == 2 * 7 * 2
    assert len(state_parameters(model)) == 2 * len(trained)
    assert all(".start." in name for name in state_parameters(model).keys() - trained.keys())


def test_pissa_is_drawn_from_the_seed_and_leaves_the_generator(bases):
    before = torch.random.get_rng_state()
    models = [add_lora(load(bases[True]), LoraConfig(init_lora_weights="pissa"), 5) for _ in "ab"]
    first, second = (state_parameters(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(before, torch.random.get_rng_state())


# ── the optimiser ────────────────────────────────────────────────────────────────────────────────


def test_embeddings_norms_and_magnitudes_do_not_decay(bases):
    config = LoraConfig(rank=2, use_dora=True, also_train=["embeddings", "norms"])
    parameters = trainable_parameters(add_lora(load(bases[True]), config, 0))
    decaying, kept = parameter_groups(parameters, TrainConfig(weight_decay=0.1, lora=config))
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in parameters.items()}
    assert all(".lora_A." in (n := names[id(p)]) or ".lora_B." in n for p in decaying["params"])
    assert len(decaying["params"]) == 2 * 7 * 2
    assert len(kept["params"]) == 2 * 7 + 1 + 5  # magnitudes, embeddings, norms


@pytest.mark.parametrize(("method", "at_once"), [("full", False), ("lora", None)])
def test_no_copy_of_all_weights_is_made_where_all_are_trained(method, at_once):
    parameters = {"x": torch.nn.Parameter(torch.ones(2, 2))}
    assert make_optimizer(parameters, TrainConfig(method=method)).defaults["foreach"] is at_once


def test_what_has_a_rate_of_its_own_moves_by_it(bases):
    """AdamW's first step is the rate, whatever the gradient: 0.01 of A and norms, 16 times that of
    B, a fifth of it of embeddings."""
    config = LoraConfig(rank=2, b_rate=16, also_train=["embeddings", "norms"])
    train = TrainConfig(learning_rate=0.01, embeddings_rate=0.2, lora=config)
    parameters = trainable_parameters(add_lora(load(bases[True]), config, 0))
    optimizer = make_optimizer(parameters, train)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    set_rate(optimizer, 0.01)
    optimizer.step()
    moved = {n: float((before[n] - p.detach()).abs().max()) for n, p in parameters.items()}
    kinds = {"lora_A": 0.01, "lora_B": 0.16, "norm": 0.01, "embed_tokens": 0.002}
    for name, distance in moved.items():
        (expected,) = [rate for kind, rate in kinds.items() if kind in name]
        assert distance == pytest.approx(expected, rel=1e-3), name
    assert sum("lora_B" in name for name in moved) == 2 * 7


def test_a_rate_of_what_is_not_trained_is_refused():
    with pytest.raises(ValidationError, match=r"embeddings_rate needs lora\.also_train"):
        TrainConfig(embeddings_rate=0.5)
    assert TrainConfig(method="full", embeddings_rate=0.5).trains_embeddings


def test_decay_shrinks_matrices_alone():
    parameters = {
        "model.layers.0.mlp.up_proj.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "model.embed_tokens.weight": torch.nn.Parameter(torch.ones(2, 2)),
        "model.norm.weight": torch.nn.Parameter(torch.ones(2)),
    }
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5)
    make_optimizer(parameters, config).step()
    matrix, embeddings, norm = (p.detach().unique().tolist() for p in parameters.values())
    assert matrix == pytest.approx([0.95])  # 1 - rate · decay
    assert embeddings == norm == [1.0]


def test_without_bitsandbytes_both_knobs_are_refused_by_name(bases, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InvalidInput, match="adamw8bit needs bitsandbytes") as caught:
        make_optimizer({"x": torch.nn.Parameter(torch.ones(2))}, TrainConfig(optimizer="adamw8bit"))
    assert "pip install" in (caught.value.hint or "")
    with pytest.raises(InvalidInput, match="quantize_base: nf4 needs bitsandbytes"):
        loss_model(bases[True], {"quantize_base": "nf4"})


def test_extend_refuses_a_missing_library_before_it_packs(giraffe, bases, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    options = ("--model", bases[True], "--target-len", 512, "--out", tmp_path / "run")
    done = giraffe("extend", *options, "--set", "train.quantize_base=nf4")
    assert (done.code, done.stdout) == (3, "")
    assert "train.quantize_base: nf4 needs bitsandbytes, which is not installed" in done.stderr
    assert "giraffe-cli[quantize]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_pissa_of_more_ranks_than_a_weight_has_directions(tiny_llama):
    """k_proj of the tiny Llama is 32 wide: its other ranks start at nothing."""
    config = TrainConfig.model_validate(
        {"lora": {"rank": 40, "init_lora_weights": "pissa", "targets": ["k_proj"]}}
    )
    base = load_model(tiny_llama, dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = base(ids).logits
        found = make_trainable(base, config, torch.float32, seed=0)(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
