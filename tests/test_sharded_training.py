"""Weights that are trained and shared out: the training of one process, in pieces."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_stack import window
from test_train_gradients import in_processes
from torch import nn
from train_runs import build_material, metrics, run

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.collectives import sum_of_part
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.pieces import Piece
from giraffe_cli.model.shard_loading import CPU, ShardedLoader
from giraffe_cli.model.sharded import layout
from giraffe_cli.model.sharded_training import TrainedShard
from giraffe_cli.model.trainable import make_trainable
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import make_folder
from giraffe_cli.train.gradients import clip
from giraffe_cli.train.setup import trainable_parameters, window_nats
from giraffe_cli.train.window_loss import WindowLoss

FULL = {"method": "full", "lora": {}, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def loss_of(base, dtype, levers, brought=None):
    model = make_trainable(base, TrainConfig.model_validate(FULL), dtype, seed=0).train()
    return WindowLoss(model, dtype, levers, base=brought)


def sharded(path, rank, processes, dtype, levers):
    loader = ShardedLoader(path, dtype, rank, processes, trains_all=True)
    base = loader.model(None, register_attention())
    return loss_of(base, dtype, levers, loader.base(base, CPU))


def told_by(loss, seeds):
    """The sums over all processes: nats, gradients by name, whole, of windows of `seeds`."""
    nats = torch.zeros(())
    for seed in seeds:
        of_window = window_nats(loss, window(seed=seed), CPU)
        of_window.backward()
        loss.end_backward()
        nats += of_window.detach()
    found = loss.held_here(trainable_parameters(loss))
    grads = {}
    for name, parameter in found.items():
        grad = parameter.grad
        if isinstance(parameter, Piece):
            rank, place = parameter.place.rank, parameter.place
            grad = place.give(grad) if rank else place.whole(grad)
        elif torch.distributed.is_initialized():
            torch.distributed.all_reduce(grad)
        grads[name] = None if grad is None else grad.flatten().tolist()
    return [nats.item(), grads]


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "levers",
    [Levers("attention"), Levers("full", mlp_tile=7, projection_tile=5)],
    ids=["plain", "tiles"],
)
def test_gradients_are_those_of_a_whole_model(
    tiny_llama, untied_llama, tmp_path, levers, dtype, is_tied
):
    """Two windows, one in each process; sums of two numbers do not depend on their order, so to the
    bit, but for tiles: they add up within a window first."""
    path = tiny_llama if is_tied else untied_llama
    told = in_processes(
        2, tmp_path, lambda rank: told_by(sharded(path, rank, 2, dtype, levers), [rank])
    )
    base = load_model(path, dtype=torch.float32, attn_implementation=register_attention())
    nats, grads = told_by(loss_of(base, dtype, levers), [0, 1])
    assert told[0][0] + told[1][0] == pytest.approx(nats, rel=1e-6)
    assert told[0][1].keys() == grads.keys()
    for name, grad in grads.items():
        same = grad if not levers.mlp_tile else pytest.approx(grad, rel=1e-4, abs=1e-6)
        assert told[0][1][name] == same, name
        assert sum(map(abs, grad)) > 0


def weights_of(run_dir):
    return load_file(run_dir / "adapter" / "trained.safetensors")


def assert_alike(run_dir, other):
    """Losses, norms and weights of two trainings, but for the order of sums."""
    assert metrics(run_dir)
    for ours, theirs in zip(metrics(run_dir), metrics(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours.get("held_out_nll") == pytest.approx(theirs.get("held_out_nll"), abs=1e-5)
    ours, theirs = weights_of(run_dir), weights_of(other)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        # Adam divides by the root of what may be nearly nought: 1e-4 of a step of 1e-3
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"windows_per_step": 4, "weight_decay": 0.1, "clip_norm": 0.1}, marks=pytest.mark.slow
        ),
        {"windows_per_step": 1, "sequence_parallel": 2, "held_out_every": 2},
        pytest.param(
            {"windows_per_step": 2, "loss": "longce", "short_context": 16}, marks=pytest.mark.slow
        ),
    ],
    ids=["two windows each", "slices", "longce"],
)
def test_two_processes_train_what_one_trains(material, tmp_path, settings):
    settings = {**FULL, "steps": 3, **settings}
    run(material, tmp_path / "one", **settings)
    reporter = SilentReporter()
    run(material, tmp_path / "two", reporter, processes=2, shard_base="full", **settings)
    assert any("base shared out over the processes" in line for line in reporter.lines)
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_a_checkpoint_is_that_of_one_process_and_goes_on_in_any_number(material, tmp_path):
    settings = {**FULL, "steps": 4, "weight_decay": 0.1}
    run(material, tmp_path / "one", **settings)
    run(material, tmp_path / "two", processes=2, shard_base="full", **settings)
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints" / "step-2" / "state.safetensors")
        for name in ("two", "one")
    )
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-5)
    for name, others in (("one", {"processes": 2, "shard_base": "full"}), ("two", {})):
        again = shutil.copytree(tmp_path / name, tmp_path / f"{name} again")
        for path in (again / "adapter", again / "checkpoints" / "step-4"):
            shutil.rmtree(path)
        reporter = SilentReporter()
        run(material, again, reporter, **settings, **others)
        assert any("resuming after step 2 of 4" in line for line in reporter.lines)
        assert_alike(again, tmp_path / "one")


@pytest.mark.slow
def test_the_best_weights_and_a_next_stage_s_are_whole(material, tmp_path):
    """A rate that overshoots, so that the first of three steps stays the best."""
    settings = {**FULL, "learning_rate": 0.3, "steps": 3, "warmup_steps": 0}
    settings |= {"keep": "best", "held_out_every": 1}
    several = {"processes": 2, "shard_base": "full"}
    first = run(material, tmp_path / "one", hands_on=True, **settings)
    second = run(material, tmp_path / "two", hands_on=True, **settings, **several)
    assert first.adapter_step == second.adapter_step < 3
    ours, theirs = weights_of(tmp_path / "two"), weights_of(tmp_path / "one")
    handed_on = load_file(tmp_path / "two" / "weights.safetensors")
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-2)
        assert torch.equal(handed_on[f"model.{name}"], ours[name])
    still = {**FULL, "learning_rate": 1e-9, "steps": 1, "windows_per_step": 2}
    run(material, tmp_path / "next", start_from=tmp_path / "two", **still, **several)
    for name, weight in weights_of(tmp_path / "next").items():
        torch.testing.assert_close(weight, ours[name], rtol=0, atol=1e-7)


def test_a_process_keeps_its_part_and_two_layers(untied_llama, tmp_path):
    def tell(rank):
        loss = sharded(untied_llama, rank, 2, torch.bfloat16, Levers())
        told_by(loss, [rank])
        base = loss.trained_base
        base.moved()
        there = sum(weight.untyped_storage().nbytes() for weight in loss.parameters())
        pieces = sum(piece.nbytes + piece.grad.nbytes for piece in base.pieces.values())
        left = [shard.gradient for shard in base.trained if shard.gradient is not None]
        return [there, pieces, sum(len(buffer) for buffer in base.buffers), len(left)]

    layer, ends, norms = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128, 384 * 64, 11 * 64
    absent_weights = 2 * 5 * 7 + 4 * 2
    buffers = 2 * max(2 * layer, 4 * ends)  # layers are gathered in 16 bits
    for there, pieces, gathered, left in in_processes(2, tmp_path, tell):
        assert there == 4 * norms + absent_weights
        assert pieces == 2 * 4 * (5 * layer + 2 * ends) // 2
        assert (gathered, left) == (buffers, 0)


def test_gradients_are_summed_once_a_window_and_no_zeros_for_a_tied_head(
    tiny_llama, untied_llama, tmp_path, monkeypatch
):
    """Of the last layer first, of the embeddings last; a head of its own before all."""

    def tell(path):
        def sums(rank):
            loss, found = sharded(path, rank, 2, torch.float32, Levers()), []

            def noted(whole, rank, group):
                found.append([whole.numel(), bool(whole.any())])
                return sum_of_part(whole, rank, group)

            monkeypatch.setattr("giraffe_cli.model.sharded_training.sum_of_part", noted)
            told_by(loss, [rank])
            return found

        return sums

    layer, ends = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128, 384 * 64
    tied, untied = (
        in_processes(2, make_folder(tmp_path / path.name), tell(path))[0]
        for path in (tiny_llama, untied_llama)
    )
    assert tied == [[layer, True]] * 2 + [[ends, True]]
    assert untied == [[ends, True]] + [[layer, True]] * 5 + [[ends, True]]


def test_a_norm_whose_square_float32_cannot_hold_is_clipped_all_the_same(tmp_path):
    def tell(rank):
        piece = Piece(torch.zeros(3 - rank))
        piece.grad = torch.full((3 - rank,), 7e18)
        whole = nn.Parameter(torch.zeros(4))
        whole.grad = torch.full((4,), 7e18)
        return [clip([piece, whole], 1.0), piece.grad.tolist(), whole.grad.tolist()]

    norm = 7e18 * 9**0.5
    for rank, (told, of_piece, of_whole) in enumerate(in_processes(2, tmp_path, tell)):
        assert told == pytest.approx(norm, rel=1e-6)
        assert of_piece == pytest.approx([7e18 / norm] * (3 - rank), rel=1e-5)
        assert of_whole == pytest.approx([7e18 / norm] * 4, rel=1e-5)


@given(
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    processes=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_pieces_of_a_weight_are_all_of_it_once(sizes, processes, dtype):
    weights = {str(n): nn.Parameter(torch.zeros(size, dtype=dtype)) for n, size in enumerate(sizes)}
    offsets, size = layout(list(weights.values()), processes)
    wide = dtype.itemsize
    whole = torch.zeros(processes * size // wide)
    values = [torch.arange(n, dtype=torch.float32) + 1 for n in sizes]
    for value, offset in zip(values, offsets, strict=True):
        whole[offset // wide : offset // wide + len(value)] = value
    parts = whole.chunk(processes)
    shards = [TrainedShard(p, weights, offsets, r, processes) for r, p in enumerate(parts)]
    for name, value in zip(weights, values, strict=True):
        pieces = [shard.pieces[name] for shard in shards]
        assert torch.cat([piece.detach() for piece in pieces]).equal(value)
        assert all(value[slice(*piece.place.own)].equal(piece.detach()) for piece in pieces)
    with torch.no_grad():
        shards[0].pieces["0"].zero_()
    assert not shards[0].part.view(dtype)[: len(shards[0].pieces["0"])].any()
