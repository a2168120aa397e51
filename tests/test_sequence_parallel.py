"""Processes that share a window compute what one process computes, slice by slice."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import boundaries, document_mask
from test_stack import CPU, base, trained, window  # noqa: F401 - base is a fixture
from test_train import material, metrics, run  # noqa: F401 - material is a fixture
from test_train_gradients import in_processes

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.attention import document_attention
from giraffe_cli.model.gathered_keys import KeyGroup
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.sequence_parallel import SequenceGroup
from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.setup import trainable_parameters, window_nats
from giraffe_cli.train.window_loss import WindowLoss, slice_of

BY = ["heads", "keys"]


def group_of(rank, size, by="heads"):
    return Layout(rank, size, size, by).sequence_group()


CASES = [
    *((2, 4, 2, "heads"), (2, 6, 3, "heads"), (3, 6, 2, "heads"), (2, 4, 1, "heads")),
    *((2, 4, 2, "keys"), (2, 3, 3, "keys"), (3, 4, 1, "keys")),
]


@pytest.mark.parametrize("lengths", [(12,), (5, 4, 3), (1, 10, 1), (3, 3, 3, 3)])
@pytest.mark.parametrize(("size", "heads", "kv_heads", "by"), CASES)
def test_shared_attention_equals_the_dense_mask(tmp_path, size, heads, kv_heads, by, lengths):
    """Also where key heads are fewer than processes, or heads do not divide by them; documents
    end at the bounds of chunks, within them, and span several."""
    num_tokens = 12
    generator = torch.Generator().manual_seed(0)
    shapes = [(heads, num_tokens), (kv_heads, num_tokens), (kv_heads, num_tokens)]
    whole = [torch.randn(1, h, n, 8, generator=generator) for h, n in shapes]
    slope = torch.randn(1, num_tokens, heads, 8, generator=generator)

    def tell(rank):
        group = group_of(rank, size, by)
        mine = [n for start, end in group.pieces(num_tokens) for n in range(start, end)]
        parts = [part[:, :, mine].clone().requires_grad_() for part in whole]
        tails = group.tails(lengths, CPU) if by == "keys" else ()
        out, _ = document_attention(
            torch.nn.Module(),
            *parts,
            None,
            cu_seqlens=boundaries(lengths),
            sequence_group=group,
            tails=tails,
        )
        (out * slope[:, mine]).sum().backward()
        return [mine, out.tolist(), *(part.grad.tolist() for part in parts)]

    told = [[torch.tensor(entry) for entry in each] for each in in_processes(size, tmp_path, tell)]
    order = torch.cat([each.pop(0) for each in told]).argsort()
    query, key, value = (part.clone().requires_grad_() for part in whole)
    repeats = heads // kv_heads
    scores = query @ key.repeat_interleave(repeats, 1).transpose(-1, -2) / 8**0.5
    weights = scores.masked_fill(~document_mask(lengths), float("-inf")).softmax(-1)
    out = (weights @ value.repeat_interleave(repeats, 1)).transpose(1, 2)
    (out * slope).sum().backward()
    for place, (expected, dim) in enumerate(
        [(out, 1), (query.grad, 2), (key.grad, 2), (value.grad, 2)]
    ):
        found = torch.cat([each[place] for each in told], dim).index_select(dim, order)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "levers",
    [
        Levers("none"),
        Levers("attention"),
        Levers("full", mlp_tile=5),
        Levers("attention", mlp_tile=5, projection_tile=4, fused=True, whole_layers=1),
    ],
)
@pytest.mark.parametrize("positions", ["plain", "pose"])
@pytest.mark.parametrize("by", BY)
def test_slices_of_a_window_sum_to_the_window(base, tmp_path, levers, positions, by):  # noqa: F811
    """Nats and every gradient, over 3 documents of 25 tokens in all: one or three of padding."""
    what = window(positions, (11, 5, 9))

    def told_by(group):
        loss = WindowLoss(trained(base), torch.float32, levers, group)
        nats = window_nats(loss, what, CPU)
        nats.backward()
        grads = [p.grad.flatten() for p in trainable_parameters(loss).values()]
        return [nats.item(), torch.cat(grads).tolist()]

    parts = in_processes(2, tmp_path, lambda rank: told_by(group_of(rank, 2, by)))
    nats, expected = told_by(None)
    assert sum(part[0] for part in parts) == pytest.approx(nats, rel=1e-6)
    found = sum(torch.tensor(part[1]) for part in parts)
    largest = torch.tensor(expected).abs().max()
    # sums of 25 tokens in another order, and of attention in parts: float32, found 2.6e-6
    torch.testing.assert_close(found, torch.tensor(expected), atol=5e-6 * largest, rtol=0)


def test_the_last_slice_is_padded_by_a_document_without_targets():
    what = window("plain", (3, 2))
    ids, labels, positions, lengths = slice_of(
        SequenceGroup(None, 1, 2), what.input_ids, what.labels, what.position_ids, what.seq_lengths
    )
    assert ids.tolist() == [[*what.input_ids[0, 3:].tolist(), 0]]
    assert labels.tolist() == [what.input_ids[0, 4], -100, -100]
    assert positions.tolist() == [[0, 1, 0]]
    assert lengths == (3, 2, 1)


def test_by_keys_a_process_holds_a_chunk_from_the_front_and_its_mirror_image():
    """Three documents of 8 tokens over two processes: chunks 0 and 3 of process 0, of two tokens.
    The last begins in a document of five, three of which lie before it."""
    group = KeyGroup(None, 0, 2)
    assert (group.padded(5), group.padded(8)) == (8, 8)
    assert group.pieces(8) == [(0, 2), (6, 8)]
    assert KeyGroup(None, 1, 2).pieces(8) == [(2, 4), (4, 6)]
    front, back = group.tails((2, 1, 5), CPU)
    assert (front.first_key, front.end, front.documents.lengths) == (0, 2, (2,))
    assert (back.first_key, back.end) == (3, 8)
    assert (back.documents.lengths, back.documents.of_keys.lengths) == ((2,), (5,))
    middle = KeyGroup(None, 1, 2).tails((2, 1, 5), CPU)[0]
    assert (middle.first_key, middle.documents.cu_seqlens.tolist()) == (2, [0, 1, 2])


def test_every_process_has_equally_many_pairs_to_attend_to():
    """Of a window of one document: the front chunk sees little, its mirror image the rest."""
    num_tokens, size = 64, 4

    def pairs(start, end):
        return sum(token + 1 for token in range(start, end))

    held = [
        sum(pairs(*piece) for piece in KeyGroup(None, rank, size).pieces(num_tokens))
        for rank in range(size)
    ]
    assert held == [pairs(0, num_tokens) // size] * size


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    size=st.integers(1, 4),
)
def test_tails_see_what_their_documents_hold_before_them(lengths, size):
    """Every query of every chunk finds its own document's beginning as its first key."""
    padding = KeyGroup(None, 0, size).padded(sum(lengths)) - sum(lengths)
    lengths = (*lengths, padding) if padding else tuple(lengths)
    starts = [sum(lengths[:n]) for n, length in enumerate(lengths) for _ in range(length)]
    seen = {}
    for rank in range(size):
        for tail in KeyGroup(None, rank, size).tails(lengths, CPU):
            of_queries, of_keys = tail.documents.lengths, tail.documents.of_keys.lengths
            assert tail.first_key + sum(of_keys) == tail.end
            query, key = tail.end - sum(of_queries), tail.first_key
            for few, many in zip(of_queries, of_keys, strict=True):
                for place in range(few):
                    assert query + place == key + many - few + place, "aligned to the right"
                    seen[query + place] = key
                query, key = query + few, key + many
    assert [seen[n] for n in range(len(starts))] == starts


@pytest.mark.parametrize("by", ["heads", pytest.param("keys", marks=pytest.mark.slow)])
def test_two_processes_that_share_windows_repeat_the_losses_of_one(
    material,  # noqa: F811
    tmp_path,
    by,
):
    """Without dropout, which draws by process; equal up to the order of a float32 sum: 1e-5."""
    lora, reporter = {"rank": 2}, SilentReporter()
    run(material, tmp_path / "one", lora=lora)
    sharing = {"processes": 2, "sequence_parallel": 2, "sequence_parallel_by": by}
    run(material, tmp_path / "shared", reporter, lora=lora, **sharing)
    assert any(f"{by} shared by 2 processes" in line for line in reporter.lines)
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
    assert "sequence_parallel_by=keys takes any number" in failure.value.hint
    assert not (tmp_path / "workers").exists()


def test_heads_that_do_not_divide_are_shared_by_keys(material, tmp_path):  # noqa: F811
    lora = {"rank": 2}
    run(material, tmp_path / "one", lora=lora, steps=2)
    sharing = {"processes": 3, "sequence_parallel": 3, "sequence_parallel_by": "keys"}
    run(material, tmp_path / "three", lora=lora, steps=2, **sharing)
    for ours, theirs in zip(metrics(tmp_path / "three"), metrics(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sequence_parallel_by": "keys"}, "needs sequence_parallel"),
        (
            {
                "sequence_parallel_by": "keys",
                "sequence_parallel": 2,
                "attention_kernel": "cudnn",
            },
            "attends by attention_kernel: flash",
        ),
    ],
)
def test_sharing_by_keys_says_what_it_needs(values, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**values)


def test_the_flag_reaches_the_processes_and_says_what_it_does(
    giraffe, tiny_llama, corpus, tmp_path
):
    options = ["--model", tiny_llama, "--data", corpus, "--target-len", "256", "--window", "64"]
    refused = giraffe("extend", *options, "--out", tmp_path, "--sequence-parallel", 3, "--no-eval")
    assert refused.code == 3
    assert "4 attention heads cannot be shared by 3 processes" in refused.stderr
    assert "hint: --sequence-parallel takes a divisor of the heads: 2, 4" in refused.stderr


def test_dropout_of_the_checkpoint_is_refused_before_anything_is_packed(
    giraffe, tiny_llama, corpus, tmp_path
):
    model = tmp_path / "dropping"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    refused = giraffe(
        *("extend", "--model", model, "--data", corpus, "--target-len", "256", "--window", "64"),
        *("--out", tmp_path / "run", "--no-eval", "--rope", "yarn", "--sequence-parallel", 2),
        *("--set", "train.processes=2", "--set", "train.sequence_parallel_by=keys"),
    )
    assert refused.code == 3
    assert "the checkpoint's attention_dropout is 0.1" in refused.stderr
    assert not (tmp_path / "run" / "packed").exists()


def test_the_attention_and_the_levers_in_force_are_told(material, tmp_path):  # noqa: F811
    reporter = SilentReporter()
    levers = {"checkpointing": "full", "offload": "disk", "mlp_tile": 16, "loss_chunk": 8}
    run(material, tmp_path, reporter, steps=1, across_documents=True, **levers)
    assert (
        "attention: giraffe, causal flash across the documents of a window, no mask; layers "
        "recomputed, inputs on disk; MLP by 16 tokens; loss by 8 tokens"
    ) in reporter.lines
