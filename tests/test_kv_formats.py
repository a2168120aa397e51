"""Written keys and values against what they stand for: error bounds, sizes, cuts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.model.kv_formats import FORMATS, GROUP, Grouped

BITS = {"int8": 8, "int4": 4}


def states(groups, seed=0, dtype=torch.float32, width=16):
    """`[1, 2, tokens, width]` with a channel that is large in every token, as keys have."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(1, 2, groups * GROUP, width, generator=generator)
    found[..., 3] += 40
    return found.to(dtype)


def written_out(states, bits, over):
    """Each group rounded by itself, in float64: `over` is the dimension that shares a scale."""
    groups = states.double().reshape(*states.shape[:2], -1, GROUP, states.shape[-1])
    low, high = groups.amin(over, keepdim=True), groups.amax(over, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return (low + ((groups - low) / scale).round() * scale).reshape(states.shape), scale


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_is_off_by_more_than_half_a_step(name, dtype):
    keys, values = states(3, 1, dtype), states(3, 2, dtype)
    form, bits = FORMATS[name], BITS[name]
    for found, given_, over in zip(
        form.read(form.write(keys, values), torch.float32), (keys, values), (3, 4), strict=True
    ):
        expected, scale = written_out(given_, bits, over)
        step = scale.expand(*scale.shape[:3], GROUP, 16).reshape(given_.shape)
        # half a step, and what 16 bits round of low and of the largest code times scale
        rounding = given_.double().abs().amax() * (2**-8 if dtype == torch.bfloat16 else 2**-10)
        assert ((found.double() - given_.double()).abs() <= step / 2 + rounding).all()
        assert (found.double() - expected).abs().mean() < step.mean() / 2


def test_keys_are_scaled_by_channel_and_values_by_token():
    """A channel of 40 among numbers of 1 costs keys nothing and values a step of 40 / 15."""
    same = states(2)
    keys, values = FORMATS["int4"].read(FORMATS["int4"].write(same, same), torch.float32)
    others = [channel for channel in range(16) if channel != 3]
    assert (keys - same)[..., others].abs().max() < 0.5
    assert (values - same)[..., others].abs().max() > 1.0


@pytest.mark.parametrize(
    ("name", "share"), [("bfloat16", 1), ("int8", 136 / 256), ("int4", 72 / 256)]
)
def test_bytes_of_a_token_and_head_of_width_64(name, share):
    keys = states(4, width=64, dtype=torch.bfloat16)
    written = FORMATS[name].write(keys, keys)
    size = sum(part.numel() * part.element_size() for part in written)
    assert size / (2 * keys.numel() * 2) == share


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_parts_may_be_cut_at_groups(name):
    keys, values = states(4, 5), states(4, 6)
    form = FORMATS[name]
    parts = form.write(keys, values)
    whole = form.read(parts, torch.float32)
    cut = form.read(tuple(part[:, :, 1:3] for part in parts), torch.float32)
    for piece, all_ in zip(cut, whole, strict=True):
        assert torch.equal(piece, all_[:, :, GROUP : 3 * GROUP])


def test_equal_numbers_stay_exactly_what_they_are():
    constant = torch.full((1, 1, GROUP, 8), -2.5)
    keys, values = Grouped(4).read(Grouped(4).write(constant, 0 * constant), torch.float32)
    assert torch.equal(keys, constant)
    assert torch.equal(values, 0 * constant)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(1e-3, 1e3),
    st.floats(-1e3, 1e3),
    st.sampled_from(["int8", "int4"]),
)
def test_what_is_read_lies_between_the_least_and_the_largest(seed, size, middle, name):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 1, GROUP, 8, generator=generator) * size + middle
    form = FORMATS[name]
    found, _ = form.read(form.write(keys, keys), torch.float32)
    slack = (abs(middle) + 5 * size) * 2**-9
    assert found.isfinite().all()
    assert (found >= keys.amin(2, keepdim=True) - slack).all()
    assert (found <= keys.amax(2, keepdim=True) + slack).all()
