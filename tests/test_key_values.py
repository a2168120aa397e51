"""Kept keys and values against transformers' own cache."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from giraffe_cli.model.key_values import KeyValues

LAYERS = 2
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 5)),
        st.tuples(st.just("cut"), st.integers(0, 9)),
        st.tuples(st.just("reserve"), st.integers(0, 30)),
    ),
    max_size=12,
)


def states(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, tokens, 4, generator=generator)


@settings(max_examples=80, deadline=None)
@given(STEPS)
def test_they_are_those_of_a_dynamic_cache_whatever_is_done(steps):
    ours, theirs = KeyValues(LAYERS), DynamicCache()
    for number, (what, count) in enumerate(steps):
        if what == "reserve":
            ours.reserve(count)
        elif what == "cut":
            ours.cut(count)
            theirs.crop(min(0, count - theirs.get_seq_length()))
        else:
            for layer in range(LAYERS):
                key, value = states(count, 10 * number + layer), states(count, 99 + number)
                found = ours.update(key, value, layer)
                expected = theirs.update(key, value, layer)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()


def filled(tokens):
    kept = KeyValues(LAYERS)
    for layer in range(LAYERS):
        kept.update(states(tokens, layer), states(tokens, layer + 9), layer)
    return kept


def test_room_that_was_reserved_is_taken_once():
    kept = KeyValues(1)
    kept.reserve(10)
    kept.update(states(4, 0), states(4, 1), 0)
    before = kept.layers[0].keys.data_ptr()
    kept.update(states(6, 2), states(6, 3), 0)
    assert kept.layers[0].keys.data_ptr() == before
    kept.update(states(1, 4), states(1, 5), 0)  # one more than was reserved
    assert kept.layers[0].keys.shape[2] == 11
    assert torch.equal(kept.layers[0].keys[:, :, :4], states(4, 0))


def test_a_part_is_a_copy_with_room_of_its_own():
    kept = filled(8)
    part = kept.part(2, 5, room_after=3)
    assert torch.equal(part.layers[1].keys, kept.layers[1].keys[:, :, 2:5])
    room = part.layers[1].keys.data_ptr()
    part.update(states(3, 7), states(3, 8), 1)
    assert part.layers[1].keys.data_ptr() == room
    assert part.get_seq_length(1) == 6
    assert torch.equal(kept.layers[1].keys, states(8, 1))


def test_pretended_tokens_are_zeros_behind_the_real_ones():
    kept = filled(2)
    kept.pretend(5)
    assert kept.get_seq_length() == 5
    assert torch.equal(kept.layers[0].keys[:, :, :2], states(2, 0))
    assert not kept.layers[0].values[:, :, 2:].any()
