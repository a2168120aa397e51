"""Reading and answering on a GPU, held against one pass without a cache: run with `-m gpu`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from giraffe_cli.inference.caches import CacheChoice
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.kv_formats import GROUP
from giraffe_cli.model.past import lower_right
from giraffe_cli.model.reading import feed, read_chunks
from giraffe_cli.model.stored import PIECES, StoredLayer

pytestmark = pytest.mark.gpu
TOKENS = 3000


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def model(request):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=1024,
        max_position_embeddings=8192,
        attn_implementation=register_attention(),
    )
    with torch.device("cuda"):
        made = LlamaForCausalLM(config).to(request.param).eval()
    for weight in made.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.1)
    return made


def states(model, **kept):
    ids = torch.randint(0, 1024, (TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    cache = CacheChoice(**kept).empty(model)
    with torch.inference_mode():
        read = partial(read_chunks, partial(feed, model), ids, cache, chunk=512, keep=TOKENS)
        return read().float(), feed(model, ids, None).float()


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kept", "allowed"),
    [
        ("auto", (1e-4, 0.05)),
        ("bfloat16", (0.05, 0.05)),
        ("int8", (0.1, 0.1)),
        ("int4", (0.8, 0.8)),
    ],
)
def test_states_are_those_of_one_pass(model, kept, allowed):
    found, expected = states(model, dtype=kept)
    assert error(found, expected) < allowed[model.dtype == torch.bfloat16]


@pytest.mark.parametrize("kept", ["auto", "int8", "int4"])
def test_the_hosts_memory_changes_no_bit(model, kept, monkeypatch):
    monkeypatch.setitem(PIECES, "cuda", 512)
    if kept == "auto":
        found, expected = states(model, dtype=kept, offload=True)
        assert error(found, expected) < (1e-4 if model.dtype == torch.float32 else 0.05)
        return
    # in pieces of one size: sums over other pieces are rounded otherwise, 7e-5 in int8
    monkeypatch.setattr(StoredLayer, "_most", lambda self, like: 512 // GROUP)
    here, there = (states(model, dtype=kept, offload=offload)[0] for offload in (False, True))
    assert torch.equal(here, there)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("new", [1, 5, 512])
def test_attention_to_a_past_is_that_of_the_whole(dtype, new):
    """Against float32 scores written out, with a mask."""
    generator = torch.Generator("cuda").manual_seed(2)
    query, keys, values = (
        torch.randn(1, heads, tokens, 64, device="cuda", generator=generator).to(dtype)
        for heads, tokens in ((8, new), (2, 1500), (2, 1500))
    )
    found = lower_right(query, keys[:, :, 700:], values[:, :, 700:], None,
                        [(keys[:, :, :700], values[:, :, :700])])  # fmt: skip
    wide, seen = (part.float().repeat_interleave(4, 1) for part in (keys, values))
    scores = query.float() @ wide.transpose(2, 3) / 8
    later = torch.ones(new, 1500, device="cuda").triu(1500 - new + 1).bool()
    expected = scores.masked_fill(later, -torch.inf).softmax(-1) @ seen
    assert (found.float() - expected).abs().max() < (1e-4 if dtype == torch.float32 else 0.01)
