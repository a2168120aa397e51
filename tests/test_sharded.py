"""A base that is shared out computes what a whole one does, and no process holds it whole."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_stack import window
from test_train_gradients import in_processes
from train_runs import build_material, metrics, run

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.collectives import all_gather
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.low_bits import dense, is_coded, keep_codes
from giraffe_cli.model.shard_loading import CPU, ShardedLoader
from giraffe_cli.model.sharded import ShardedBase, layout
from giraffe_cli.model.trainable import load_base, make_trainable
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.setup import trainable_parameters, window_nats
from giraffe_cli.train.window_loss import WindowLoss

LORA = {"lora": {"rank": 2}}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def sharded(path, rank, processes, train, levers):
    in_4_bits = train.get("quantize_base") == "nf4"
    loader = ShardedLoader(path, torch.float32, rank, processes, in_4_bits=in_4_bits)
    base = loader.model(None, register_attention())
    shards, line = loader.shards(base, CPU)
    keep_codes(base)
    model = with_adapters(base, train)
    return WindowLoss(model, torch.float32, levers, base=ShardedBase(shards, line, processes))


def with_adapters(base, train):
    model = make_trainable(base, TrainConfig.model_validate(train), torch.float32, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.train()


def told_by(loss):
    """Nats without gradients, then twice with: what a pass leaves behind harms none after it."""
    with torch.no_grad():
        told = [window_nats(loss, window(), CPU).item()]
    for seed in range(2):
        nats = window_nats(loss, window(seed=seed), CPU)
        nats.backward()
        told.append(nats.item())
    grads = [p.grad.flatten().tolist() for p in trainable_parameters(loss).values()]
    return [told, grads]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize(
    "levers",
    [
        Levers("attention"),
        Levers("full", mlp_tile=7),
        Levers("attention", fused=True),
        Levers("attention", mlp_tile=7, projection_tile=5, fused=True),
    ],
)
def test_nats_and_gradients_are_those_of_a_whole_base_to_the_bit(
    tiny_llama, untied_llama, tmp_path, levers, is_tied
):
    path = tiny_llama if is_tied else untied_llama
    told = in_processes(2, tmp_path, lambda rank: told_by(sharded(path, rank, 2, LORA, levers)))
    base = load_model(path, dtype=torch.float32, attn_implementation=register_attention())
    whole = told_by(WindowLoss(with_adapters(base, LORA), torch.float32, levers))
    assert told[0] == told[1] == whole
    assert all(sum(map(abs, grad)) > 0 for grad in whole[1])


@pytest.mark.parametrize(
    "levers",
    [
        Levers("full"),
        Levers("attention", mlp_tile=7, projection_tile=5, fused=True),
    ],
)
def test_a_base_in_4_bits_is_shared_out_to_the_bit(untied_llama, tmp_path, levers):
    train = {**LORA, "quantize_base": "nf4"}
    told = in_processes(
        2, tmp_path, lambda rank: told_by(sharded(untied_llama, rank, 2, train, levers))
    )
    whole = told_by(WindowLoss(with_adapters(whole_in_4_bits(untied_llama), train), torch.float32,
                               levers))  # fmt: skip
    assert told[0] == told[1] == whole
    base = load_model(untied_llama, dtype=torch.float32, attn_implementation=register_attention())
    in_32_bits = told_by(WindowLoss(with_adapters(base, LORA), torch.float32, levers))
    assert whole[0] != in_32_bits[0], "it was rounded"


def whole_in_4_bits(path):
    config = TrainConfig(quantize_base="nf4")
    return load_base(path, config, dtype=torch.float32, table=None,
                     attn_implementation=register_attention())  # fmt: skip


def test_of_a_base_in_4_bits_a_process_keeps_its_part_of_the_codes_and_all_scales(
    untied_llama, tmp_path
):
    """36,864 numbers of a layer: 18,432 bytes, and 576 scales of one. What lies together does so
    as if the base were whole."""

    def tell(rank):
        loss = sharded(untied_llama, rank, 2, {**LORA, "quantize_base": "nf4"}, Levers())
        layer = loss.model.get_base_model().model.layers[1]
        weight = layer.mlp.up_proj.base_layer.weight
        with pytest.raises(AssertionError, match="codes that are another process's"):
            dense(weight, torch.float32)
        kept = [len(shard.part) for shard in loss.base.shards]
        scales = sum(len(p.quant_state.absmax) for p in layer.parameters() if is_coded(p))
        return [kept, scales, max(len(buffer) for buffer in loss.base.buffers)]

    layer, end = 18_432, 4 * 384 * 64
    for told in in_processes(2, tmp_path, tell):
        assert told == [[end // 2, *[layer // 2] * 5, end // 2], 576, end]


def test_a_process_keeps_its_part_and_two_layers(untied_llama, tmp_path):
    def tell(rank):
        loss = sharded(untied_llama, rank, 2, LORA, Levers())
        kept = sum(len(shard.part) for shard in loss.base.shards)
        seen = {
            weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
            for weight in loss.parameters()
            if not weight.requires_grad
        }
        return [kept, sum(seen.values()), sum(len(buffer) for buffer in loss.base.buffers)]

    layer = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    ends = 2 * 4 * 384 * 64
    norms = 4 * 11 * 64
    absent_weights = 4 * (5 * 7 + 2)
    for told in in_processes(2, tmp_path, tell):
        assert told == [(5 * layer + ends) // 2, norms + absent_weights, 2 * layer]


def test_each_layer_is_sent_for_once_up_and_once_down_and_before_it_is_needed(
    untied_llama, tmp_path, monkeypatch
):
    """Of a pass; the last layer and the head are still there when the way back begins."""

    def tell(rank):
        loss, sent = sharded(untied_llama, rank, 2, LORA, Levers()), []
        number_of = {shard.part.data_ptr(): n for n, shard in enumerate(loss.base.shards)}

        def noted(part, whole, group):
            sent.append(number_of[part.data_ptr()])
            return all_gather(part, whole, group)

        monkeypatch.setattr("giraffe_cli.model.sharded.all_gather", noted)
        for _ in range(2):
            window_nats(loss, window(), CPU).backward()
        with torch.no_grad():
            window_nats(loss, window(), CPU)
        return sent

    head = 6
    trained = [0, 1, 2, 3, 4, 5, head, 4, 3, 2, 1]
    expected = [*trained, 0, *trained[2:], 0, *range(2, head + 1)]  # layer 1 is still there
    assert in_processes(2, tmp_path, tell) == [expected, expected]


def test_what_is_not_there_is_no_number(tiny_llama, tmp_path):
    def tell(rank):
        loss = sharded(tiny_llama, rank, 2, LORA, Levers())
        layer = loss.model.get_base_model().model.layers[1]
        before = layer.mlp.down_proj.base_layer.weight.isnan().all().item()
        window_nats(loss, window(), CPU)
        loss.base.take_embeddings()
        return [before, loss.base.held]

    assert in_processes(2, tmp_path, tell) == [[True, [0, 1]]] * 2


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"windows_per_step": 2}, marks=pytest.mark.slow),
        {"windows_per_step": 1, "sequence_parallel": 2, "held_out_every": 2},
        {"windows_per_step": 2, "quantize_base": "nf4"},
        pytest.param({"windows_per_step": 2, "held_out_every": 2, "held_out_windows": 3,
                      "lora": {"rank": 2, "also_train": ["embeddings", "norms"]}},
                     marks=pytest.mark.slow),
    ],
    ids=["own windows", "slices", "4 bits", "embeddings trained, 3 windows measured"],
)  # fmt: skip
def test_two_processes_that_share_the_base_repeat_the_losses_of_one(material, tmp_path, settings):
    settings = {"lora": {"rank": 2}, "steps": 2, **settings}
    run(material, tmp_path / "one", **settings)
    reporter = SilentReporter()
    run(material, tmp_path / "two", reporter, processes=2, shard_base="full", **settings)
    assert any("base shared out over the processes" in line for line in reporter.lines)
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours.get("held_out_nll") == pytest.approx(theirs.get("held_out_nll"), abs=1e-5)


def test_parts_are_aligned_and_together_hold_all():
    weights = [torch.zeros(3, 5), torch.zeros(100, 7), torch.zeros(2, 2)]
    offsets, part = layout(weights, 3)
    assert offsets == (0, 256, 256 + 2816)
    assert part == 1280
    assert 3 * part >= offsets[-1] + 16


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "full", "optimizer": "adamw8bit"}, "adamw8bit under method: full need it"),
        ({"lora": {"use_dora": True}}, "need it whole"),
        ({"lora": {"init_lora_weights": "pissa"}}, "need it whole"),
        ({"checkpointing": "none"}, "shard_base needs checkpointing"),
        ({"shard_base": "nodes"}, "shard_base: nodes needs nodes, of which there is one"),
    ],
)
def test_what_needs_the_base_whole_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        TrainConfig.model_validate({"shard_base": "full", **settings})


def test_a_checkpoint_without_a_weight_is_named(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    loader = ShardedLoader(folder, torch.float32, 0, 2)
    model = loader.model(None, register_attention())
    with pytest.raises(InvalidInput, match=r"no tensor model\.layers\.1\.mlp\.up_proj"):
        loader.shards(model, CPU)
