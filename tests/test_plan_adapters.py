"""What the plan says that adapters keep, against what autograd saves."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.trainable import make_trainable
from giraffe_cli.plan.adapted import ATTENTION, MLP, adapted, weighed
from giraffe_cli.plan.demand import Demand, live
from giraffe_cli.plan.layer_tensors import narrowed, saved
from giraffe_cli.plan.shapes import named_shape
from giraffe_cli.train.window_loss import WindowLoss

TOKENS, WHOLE = 128, Levers(checkpointing="none")
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_key_value_heads": 1, "head_dim": 64}
SHAPE = dataclasses.replace(named_shape("smollm2-135m"), num_attention_heads=3, **SIZES)


def demand_of(lora, kind="cpu", dtype="float32", shape=SHAPE, window=TOKENS):
    train = TrainConfig.model_validate({"lora": {"rank": 1, **lora}})
    return Demand(shape, train, dtype, window, kind)


def saved_by_autograd(
    folder: Path, layers: int, train: TrainConfig, dtype: torch.dtype = torch.float32
) -> int:
    """Bytes of all storages that the graph of one window holds beside the weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES,
        num_hidden_layers=layers,
        num_attention_heads=3,
        vocab_size=300,
        attn_implementation=register_attention(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_trainable(LlamaForCausalLM(config), train, dtype, 0).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    loss = WindowLoss(model, dtype, WHOLE, None, folder, None)
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = tensor
        return tensor

    ids = torch.arange(TOKENS)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(ids[None], ids.clone(), ids[None], (TOKENS,))
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize(
    "lora",
    [{}, {"dropout": 0.1}, {"use_dora": True}, {"use_dora": True, "dropout": 0.1}],
    ids=["plain", "dropout", "dora", "both"],
)
def test_a_whole_layer_keeps_what_autograd_saves_of_it(lora, tmp_path):
    """A layer more; 2 % for the factors' inner activations and one number a token of each norm."""
    train = demand_of(lora).train
    one_more = saved_by_autograd(tmp_path, 3, train) - saved_by_autograd(tmp_path, 2, train)
    assert live(saved(demand_of(lora), WHOLE)) == pytest.approx(one_more, rel=0.02)


@pytest.mark.parametrize(
    ("train", "dtype", "within"),
    [
        ({"method": "full"}, "float32", 0.02),
        ({"method": "full"}, "bfloat16", 0.02),
        ({"lora": {"rank": 1, "also_train": ["norms"]}}, "float32", 0.035),  # PEFT's wrapper
    ],
)
def test_what_else_a_layer_keeps_where_its_own_weights_train(tmp_path, train, dtype, within):
    """What its norms' weights multiply; and in 16 bits autocast's copies of its matrices: 0.89 MB
    of 1.84 MB were missing. Else as above."""
    config = TrainConfig.model_validate(train)
    two, three = (saved_by_autograd(tmp_path, n, config, getattr(torch, dtype)) for n in (2, 3))
    planned = Demand(SHAPE, config, dtype, TOKENS, "cpu")
    assert live(saved(planned, WHOLE)) == pytest.approx(three - two, rel=within)


def test_copies_in_16_bits_by_hand():
    full = TrainConfig(method="full")
    matrices = 2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512
    assert live(narrowed(Demand(SHAPE, full, "bfloat16", TOKENS, "cuda"), Levers())) == 2 * matrices
    assert narrowed(Demand(SHAPE, full, "float32", TOKENS, "cuda"), Levers()) == []
    assert narrowed(demand_of({}, dtype="bfloat16"), Levers()) == []


def test_what_a_layer_s_gradients_take_where_processes_share_weights_out():
    """Its own and those being summed, float32: of the embeddings where they are more. Of two
    processes' sums a half is kept, and of a layer's matrices a half goes out in 16 bits."""
    full = TrainConfig(method="full", shard_base="full")
    matrices = 2 * 192 * 192 + 2 * 192 * 64 + 3 * 192 * 512
    ends = SHAPE.vocab_size * 192
    found = narrowed(
        Demand(SHAPE, full, "bfloat16", TOKENS, "cuda", processes=2), Levers(shard_base=True)
    )
    summed = max(matrices, ends)
    assert live(found) == 4 * (matrices + summed) + (4 * summed + 2 * matrices) / 2


def test_dropout_by_hand():
    """Of each input a mask and what is left; the input itself is no longer kept, but the output
    projection's, which attention keeps. On a GPU a mask has a byte a number."""
    d, f, row = 192, 512, 4 * TOKENS
    all_of_it = adapted(demand_of({"dropout": 0.1}), ATTENTION + MLP, TOKENS)
    assert live(all_of_it) == row * (2 * (6 * d + f) - 2 * d - f)
    narrow = demand_of({"dropout": 0.1, "targets": ["q_proj", "o_proj"]}, "cuda", "bfloat16")
    assert live(adapted(narrow, ATTENTION, TOKENS)) == TOKENS * d * (2 * (1 + 2) - 2)
    assert adapted(narrow, MLP, TOKENS) == []


def test_dora_of_llama_8b_is_large_whatever_the_window():
    """An identity of each input, 6 of 4,096 and one of 14,336 channels, in 16 bits; beside them
    the largest product in two copies."""
    demand = demand_of({"use_dora": True}, "cuda", "bfloat16", named_shape("llama3-8b"), 1)
    weights = live(adapted(demand, ATTENTION + MLP, 0))
    assert weights == 2 * (6 * 4096**2 + 14336**2)
    assert live(weighed(demand, MLP, 100)) == 2 * 2 * 4096 * 14336 + 4 * 2 * 100 * 14336
    assert weighed(demand_of({}), MLP, 100) == []
