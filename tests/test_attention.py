"""Document attention against a dense float32 mask, and inside a real Llama."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.model.attention import document_attention, register_attention
from giraffe_cli.model.flash import AttentionTape
from giraffe_cli.model.reading import cache_argument
from giraffe_cli.model.store import DeviceStore

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def tensors(num_new: int, num_all: int, heads: int = 4, kv_heads: int = 2, device: str = "cpu"):
    generator = torch.Generator().manual_seed(num_new * 1000 + num_all)
    shapes = (heads, num_new), (kv_heads, num_all), (kv_heads, num_all)
    return [
        torch.randn(1, h, n, 16, generator=generator).to(device).requires_grad_() for h, n in shapes
    ]


def dense(query, key, value, allowed):
    """The definition: softmax(QKᵀ/√D) under a boolean [Q, N] mask, in float32."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~allowed.to(scores.device), float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


def document_mask(lengths):
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = document[:, None] == document[None, :]
    return same & torch.ones(len(document), len(document)).tril().bool()


def boundaries(lengths):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).to(torch.int32)


def attend(query, key, value, lengths=None):
    cu_seqlens = None if lengths is None else boundaries(lengths)
    return document_attention(torch.nn.Module(), query, key, value, None, cu_seqlens=cu_seqlens)[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[12], [5, 7], [1, 1, 10], [3, 4, 2, 3]])
def test_forward_and_backward_equal_the_dense_mask(lengths, kv_heads, device):
    ours = tensors(12, 12, kv_heads=kv_heads, device=device)
    reference = [t.detach().clone().requires_grad_() for t in ours]
    out = attend(*ours, lengths)
    expected = dense(*reference, document_mask(lengths))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (out * slope).sum().backward()
    (expected * slope).sum().backward()
    for mine, theirs in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6))
def test_a_document_does_not_feel_its_neighbour_by_a_bit(lengths):
    query, key, value = (t.detach() for t in tensors(sum(lengths), sum(lengths)))
    before = attend(query, key, value, lengths)
    for part in (query, key, value):
        part[:, :, : lengths[0]] += 1.0
    after = attend(query, key, value, lengths)
    assert torch.equal(before[:, lengths[0] :], after[:, lengths[0] :])
    assert not torch.equal(before[:, : lengths[0]], after[:, : lengths[0]])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("num_new", "num_all"), [(1, 9), (3, 9), (8, 9), (9, 9)])
def test_new_tokens_after_a_cache_see_all_before_them(num_new, num_all, device):
    query, key, value = (t.detach() for t in tensors(num_new, num_all, device=device))
    allowed = torch.ones(num_new, num_all).tril(diagonal=num_all - num_new).bool()
    torch.testing.assert_close(
        attend(query, key, value), dense(query, key, value, allowed), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[4], [1, 3], [2, 2], [1, 1, 1, 1]])
def test_continuations_see_the_cache_and_themselves(lengths, kv_heads):
    query, key, value = (t.detach() for t in tensors(4, 10, kv_heads=kv_heads))
    allowed = torch.cat([torch.ones(4, 6).bool(), document_mask(lengths)], 1)
    torch.testing.assert_close(
        attend(query, key, value, lengths), dense(query, key, value, allowed), atol=1e-5, rtol=0
    )


def test_bfloat16_prefill_in_chunks_equals_one_pass():
    query, key, value = (t.detach().bfloat16() for t in tensors(12, 12))
    whole = attend(query, key, value)
    chunked = attend(query[:, :, 5:], key, value)
    assert chunked.dtype == torch.bfloat16
    torch.testing.assert_close(chunked, whole[:, 5:], atol=2e-2, rtol=0)  # two bf16 ulps near 1


@pytest.mark.parametrize(
    ("lengths", "message"), [([5, 6], "do not tile"), ([13, -1], "do not tile")]
)
def test_boundaries_that_do_not_tile_the_window_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        attend(*tensors(12, 12), lengths)


def test_documents_beside_several_rows_and_a_mask_are_refused():
    query, key, value = (torch.cat([part, part]) for part in tensors(4, 4))
    with pytest.raises(ValueError, match="in one packed row"):
        attend(query, key, value, [1, 3])
    with pytest.raises(ValueError, match="takes no mask"):
        document_attention(torch.nn.Module(), query, key, value, torch.ones(2, 1, 4, 4))


def test_dropout_is_refused_where_attention_is_played_back():
    query, key, value = tensors(4, 4)
    with pytest.raises(ValueError, match="cannot be played back"):
        document_attention(
            *(torch.nn.Module(), query, key, value, None),
            dropout=0.1,
            tape=AttentionTape(DeviceStore(), "0"),
        )


def test_padding_wrong_continuations_and_cached_gradients_are_refused(tiny):
    query, key, value = tensors(3, 9)
    with torch.no_grad(), pytest.raises(ValueError, match="do not tile 3 tokens"):
        attend(query, key, value, [4, 5])
    with pytest.raises(ValueError, match="no gradient"):
        attend(query, key, value)
    padded = torch.tensor([[1, 1, 1, 0]])
    with pytest.raises(ValueError, match="no padding"):
        tiny(torch.tensor([[5, 6, 7, 8]]), attention_mask=padded)


@pytest.fixture
def tiny(tiny_llama):
    from transformers import LlamaForCausalLM

    register_attention()
    return LlamaForCausalLM.from_pretrained(
        tiny_llama, attn_implementation=register_attention(), dtype=torch.float32
    ).eval()


def test_a_packed_row_of_a_llama_equals_its_documents_alone(tiny):
    first, second = torch.arange(10, 17)[None], torch.arange(20, 25)[None]
    # PoSE: positions jump inside a document and never restart at zero
    first_ids, second_ids = torch.arange(7)[None] * 3 + 2, torch.arange(5)[None] + 90
    alone = [
        tiny.model(ids, position_ids=where, use_cache=False).last_hidden_state
        for ids, where in ((first, first_ids), (second, second_ids))
    ]
    packed = tiny.model(
        torch.cat([first, second], 1),
        position_ids=torch.cat([first_ids, second_ids], 1),
        attention_mask=None,
        use_cache=False,
        cu_seqlens=boundaries([7, 5]),
    ).last_hidden_state
    torch.testing.assert_close(packed, torch.cat(alone, 1), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_llama_prefilled_in_chunks_equals_one_pass_and_stock_sdpa(tiny, tiny_llama):
    from transformers import DynamicCache, LlamaForCausalLM

    tokens = torch.arange(30, 50)[None]
    cache, named = DynamicCache(config=tiny.config), cache_argument(tiny.model)
    parts = [
        tiny.model(chunk, **{named: cache}, use_cache=True).last_hidden_state
        for chunk in tokens.split([8, 11, 1], 1)
    ]
    stock = LlamaForCausalLM.from_pretrained(tiny_llama, attn_implementation="sdpa")
    expected = stock.eval().model(tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)
