"""A past that is written small: the same attention, the same places, back to every mark."""

from __future__ import annotations

import math

import pytest
import torch
from evaluated import build_other_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.key_values import KeyValues
from giraffe_cli.model.kv_formats import FORMATS, GROUP, Cast
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.reading import feed, read_chunks
from giraffe_cli.model.stored import OPEN, PIECES, StoredKeyValues, StoredLayer

EXACT = Cast(torch.float32)
"""Written as they are: what is left of differences is the order of sums."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = build_other_llama(tmp_path_factory.mktemp("other-llama"))
    return load_model(folder, dtype=torch.float32, attn_implementation=register_attention())


def ids(count, step=37):
    return [token * step % 384 for token in range(count)]


def states(model, kept, tokens, chunk, start=0):
    with torch.inference_mode():
        return read_chunks(
            lambda piece, cache: feed(model, piece, cache),
            tokens,
            kept,
            chunk=chunk,
            keep=len(tokens) - start,
            start=start,
        )


def stored(model, form=EXACT):
    return StoredKeyValues(model.config.num_hidden_layers, form)


@pytest.mark.parametrize("chunk", [1, 50, 64, 300, 1000])
def test_attention_over_pieces_is_attention_over_all(model, chunk, monkeypatch):
    monkeypatch.setitem(PIECES, "cpu", 128)
    tokens = ids(300 if chunk == 1 else 700)
    plain = states(model, KeyValues(2), tokens, 1000)
    kept = stored(model)
    found = states(model, kept, tokens, chunk)
    assert kept.get_seq_length() == len(tokens)
    if chunk < 300:
        assert kept.layers[0].closed > 0
    assert (found - plain).abs().max() < 2e-4  # states of about 3


@pytest.mark.parametrize("name", ["int8", "int4", "bfloat16"])
def test_what_is_written_smaller_is_near(model, name):
    """Weights this large exaggerate every error; a prompt in another order is further away."""
    tokens = ids(700)
    plain = states(model, KeyValues(2), tokens, 1000)[-100:]
    found = states(model, stored(model, FORMATS[name]), tokens, 64)[-100:]
    shuffled = states(model, KeyValues(2), [*reversed(tokens[:600]), *tokens[600:]], 1000)[-100:]
    error = (found - plain).norm() / plain.norm()
    assert error < {"int8": 0.06, "int4": 0.6, "bfloat16": 0.03}[name]
    assert error > 0
    assert (shuffled - plain).norm() / plain.norm() > 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 150)),
        st.tuples(st.just("mark"), st.just(0)),
        st.tuples(st.just("rewind"), st.just(0)),
        st.tuples(st.just("clear"), st.just(0)),
        st.tuples(st.just("reserve"), st.integers(1, 900)),
    ),
    max_size=14,
)


def numbered(start, count):
    """Keys that say which token they are of, `[1, 1, count, 2]`."""
    line = torch.arange(start, start + count, dtype=torch.float32)
    return torch.stack([line, -line], -1)[None, None]


def everything(layer):
    """Closed and open keys in order."""
    pieces = [keys for keys, _ in layer.pieces(torch.float32)]
    return torch.cat([*pieces, layer.tail[0][:, :, : layer.open]], 2)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_tokens_keep_their_places_whatever_is_done(steps):
    kept, length, marks, given_ = StoredKeyValues(2, EXACT), 0, [], 0
    content: list[float] = []
    for what, count in steps:
        if what == "reserve":
            kept.reserve(count)
        elif what == "mark":
            marks.append((kept.mark(), list(content)))
        elif what == "rewind" and marks:
            mark, content = marks[-1][0], list(marks[-1][1])
            kept.rewind(mark)
        elif what == "clear":
            kept.clear()
            content, marks = [], []
        elif what == "add":
            new = numbered(given_, count)
            for layer in range(2):
                open_keys, _ = kept.update(new, 2 * new, layer)
                assert torch.equal(open_keys[:, :, -count:], new)
            content += range(given_, given_ + count)
            given_ += count
        length = len(content)
        assert kept.get_seq_length() == length
        if length:
            for layer in kept.layers:
                assert everything(layer)[0, 0, :, 0].tolist() == content
                assert layer.closed % GROUP == 0


def test_at_least_the_last_tokens_stay_open():
    kept = StoredKeyValues(1, EXACT)
    for _ in range(40):
        kept.update(numbered(0, 10), numbered(0, 10), 0)
        assert kept.layers[0].open >= min(OPEN, kept.get_seq_length())
        assert kept.layers[0].open < OPEN + GROUP + 10


@torch.inference_mode()
def test_after_a_rewind_the_same_tokens_give_the_same_bits(model):
    """int4 loses what it closes; a mark brings it back."""
    kept = stored(model, FORMATS["int4"])
    states(model, kept, ids(333), 64)
    mark = kept.mark()
    first = states(model, kept, [*ids(333), *ids(200, 5)], 64, start=333)
    kept.rewind(mark)
    states(model, kept, [*ids(333), *ids(290, 11)], 64, start=333)
    kept.rewind(mark)
    again = states(model, kept, [*ids(333), *ids(200, 5)], 64, start=333)
    assert torch.equal(first, again)


def test_room_that_was_reserved_is_taken_block_by_block_and_once(monkeypatch):
    """1,000 tokens: 64 stay open, 14 groups of 64 are closed; a block of a piece holds four."""
    monkeypatch.setitem(PIECES, "cpu", 256)
    kept = StoredKeyValues(1, EXACT)
    kept.reserve(1000)
    for start in range(0, 1000, 50):
        before = [block[0].data_ptr() for block in kept.layers[0].blocks]
        kept.update(numbered(start, 50), numbered(start, 50), 0)
        assert [b[0].data_ptr() for b in kept.layers[0].blocks][: len(before)] == before
    assert [len(block[0]) for block in kept.layers[0].blocks] == [4, 4, 4, 2]
    assert everything(kept.layers[0])[0, 0, :, 0].tolist() == list(range(1000))


def test_a_past_that_nobody_reserved_grows_by_what_there_is(monkeypatch):
    monkeypatch.setitem(PIECES, "cpu", 512)
    kept = StoredKeyValues(1, EXACT)
    for start in range(0, 2000, 64):
        kept.update(numbered(start, 64), numbered(start, 64), 0)
    assert [len(block[0]) for block in kept.layers[0].blocks] == [1, 1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(("heads", "width"), [(8, 128), (3, 64), (5, 80)])
@pytest.mark.parametrize("name", FORMATS)
def test_a_pinned_block_is_just_below_a_power_of_two(monkeypatch, name, heads, width):
    """torch's pool of pinned memory rounds each request up to one: by 1 % of the codes at most."""
    monkeypatch.setattr(StoredLayer, "_is_pinned", True)
    layer = StoredLayer(FORMATS[name], on_host=True)
    layer.device = torch.device("cuda")
    states = torch.zeros(1, heads, GROUP, width, dtype=torch.bfloat16)
    like = FORMATS[name].write(states, states)
    of_group = max(part.nbytes for part in like)
    size = layer._most(like) * of_group
    assert 0.99 * 2 ** math.ceil(math.log2(size)) <= size
    assert PIECES["cuda"] // GROUP * of_group / 2 < size <= PIECES["cuda"] // GROUP * of_group
