"""Processes that share a window compute what one process computes, slice by slice."""

from __future__ import annotations

import pytest
import torch
from test_attention import boundaries, document_mask
from test_stack import CPU, base, trained, window  # noqa: F401 - base is a fixture
from test_train import material, metrics, run  # noqa: F401 - material is a fixture
from test_train_gradients import in_processes

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.attention import document_attention
from giraffe_cli.model.levers import Levers
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.setup import trainable_parameters, window_nats
from giraffe_cli.train.window_loss import WindowLoss, slice_of


def group_of(rank, size):
    return Layout(rank, size, sequence_parallel=size).sequence_group()


@pytest.mark.parametrize(
    ("size", "heads", "kv_heads"), [(2, 4, 2), (2, 6, 3), (3, 6, 2), (2, 4, 1)]
)
def test_shared_attention_equals_the_dense_mask(tmp_path, size, heads, kv_heads):
    """Also where key heads are fewer than processes, or do not divide by them."""
    lengths, num_tokens = (5, 4, 3), 12
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, num_tokens), (kv_heads, num_tokens), (kv_heads, num_tokens)]
    whole = [torch.randn(1, h, n, 8, generator=generator) for h, n in shapes]
    slope = torch.randn(1, num_tokens, heads, 8, generator=generator)

    def tell(rank):
        length = num_tokens // size
        mine = slice(rank * length, (rank + 1) * length)
        parts = [part[:, :, mine].clone().requires_grad_() for part in whole]
        out, _ = document_attention(
            torch.nn.Module(),
            *parts,
            None,
            cu_seqlens=boundaries(lengths),
            sequence_group=group_of(rank, size),
        )
        (out * slope[:, mine]).sum().backward()
        return [out.tolist(), *(part.grad.tolist() for part in parts)]

    told = [[torch.tensor(entry) for entry in each] for each in in_processes(size, tmp_path, tell)]
    query, key, value = (part.clone().requires_grad_() for part in whole)
    repeats = heads // kv_heads
    scores = query @ key.repeat_interleave(repeats, 1).transpose(-1, -2) / 8**0.5
    weights = scores.masked_fill(~document_mask(lengths), float("-inf")).softmax(-1)
    out = (weights @ value.repeat_interleave(repeats, 1)).transpose(1, 2)
    (out * slope).sum().backward()
    for place, (expected, dim) in enumerate(
        [(out, 1), (query.grad, 2), (key.grad, 2), (value.grad, 2)]
    ):
        found = torch.cat([each[place] for each in told], dim)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "levers", [Levers("none"), Levers("attention"), Levers("full", mlp_tile=5)]
)
@pytest.mark.parametrize("positions", ["plain", "pose"])
def test_slices_of_a_window_sum_to_the_window(base, tmp_path, levers, positions):  # noqa: F811
    """Nats and every gradient, over 3 documents of 25 tokens in all: one token of padding."""
    what = window(positions, (11, 5, 9))

    def told_by(group):
        loss = WindowLoss(trained(base), torch.float32, levers, group)
        nats = window_nats(loss, what, CPU)
        nats.backward()
        grads = [p.grad.flatten() for p in trainable_parameters(loss).values()]
        return [nats.item(), torch.cat(grads).tolist()]

    parts = in_processes(2, tmp_path, lambda rank: told_by(group_of(rank, 2)))
    nats, expected = told_by(None)
    assert sum(part[0] for part in parts) == pytest.approx(nats, rel=1e-6)
    found = sum(torch.tensor(part[1]) for part in parts)
    largest = torch.tensor(expected).abs().max()
    # sums of 25 tokens in another order: float32
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6 * largest, rtol=0)


def test_the_last_slice_is_padded_by_a_document_without_targets():
    class Group:
        rank, size = 1, 2

        def slice_length(self, num_tokens):
            return 3

    what = window("plain", (3, 2))
    ids, labels, positions, lengths = slice_of(
        Group(), what.input_ids, what.labels, what.position_ids, what.seq_lengths
    )
    assert ids.tolist() == [[*what.input_ids[0, 3:].tolist(), 0]]
    assert labels.tolist() == [what.input_ids[0, 4], -100, -100]
    assert positions.tolist() == [[0, 1, 0]]
    assert lengths == (3, 2, 1)


def test_two_processes_that_share_windows_repeat_the_losses_of_one(
    material,  # noqa: F811
    tmp_path,
):
    """Without dropout, which draws by process; equal up to the order of a float32 sum: 1e-5."""
    lora = {"rank": 2}
    run(material, tmp_path / "one", lora=lora)
    run(material, tmp_path / "shared", lora=lora, processes=2, sequence_parallel=2)
    for ours, theirs in zip(metrics(tmp_path / "shared"), metrics(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["tokens"] == theirs["tokens"]


@pytest.mark.slow
def test_four_processes_in_two_groups_repeat_the_losses_of_one(material, tmp_path):  # noqa: F811
    lora = {"rank": 2}
    run(material, tmp_path / "one", lora=lora)
    run(material, tmp_path / "groups", lora=lora, processes=4, sequence_parallel=2)
    for ours, theirs in zip(metrics(tmp_path / "groups"), metrics(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


def test_heads_that_cannot_be_shared_are_refused_before_anything_starts(material, tmp_path):  # noqa: F811
    with pytest.raises(InvalidInput, match="4 attention heads cannot be shared by 3") as failure:
        run(material, tmp_path, processes=3, sequence_parallel=3)
    assert "2, 4" in failure.value.hint
    assert not (tmp_path / "workers").exists()


def test_the_flag_reaches_the_processes_and_says_what_it_does(
    giraffe, tiny_llama, corpus, tmp_path
):
    options = ["--model", tiny_llama, "--data", corpus, "--target-len", "256", "--window", "64"]
    refused = giraffe("extend", *options, "--out", tmp_path, "--sequence-parallel", 3, "--no-eval")
    assert refused.code == 3
    assert "4 attention heads cannot be shared by 3 processes" in refused.stderr
    assert "hint: --sequence-parallel takes a divisor of the heads: 2, 4" in refused.stderr


def test_the_attention_and_the_levers_in_force_are_told(material, tmp_path):  # noqa: F811
    from giraffe_cli.progress import SilentReporter

    reporter = SilentReporter()
    settings = {"checkpointing": "full", "offload": "disk", "mlp_tile": 16, "loss_chunk": 8}
    run(material, tmp_path, reporter, steps=1, across_documents=True, **settings)
    assert (
        "attention: giraffe, causal flash across the documents of a window, no mask; layers "
        "recomputed, inputs on disk; MLP by 16 tokens; loss by 8 tokens"
    ) in reporter.lines
