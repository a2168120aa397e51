"""The contract that every RoPE strategy meets, and the golden numbers of three."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import (
    Head,
    RopeTable,
    longrope_parameters,
    make_strategy,
    make_table,
    strategies,
)

NAMES = sorted(strategies())
LLAMA_2 = Head(128, 1e4, 4096, 16384)
HEADS = {
    "llama-2 to 16k": LLAMA_2,
    "llama-3 to 32k": Head(128, 5e5, 8192, 32768),
    "smollm2 to 16k": Head(64, 1e5, 8192, 16384),
    "tinyllama to 6000": Head(64, 1e4, 2048, 6000),
    "calf to 16k": Head(32, 1e4, 1024, 16384),
    "window of 128": Head(16, 1e4, 128, 1024),
}
every_strategy = pytest.mark.parametrize("name", NAMES)
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())

# -------------------------------------------------------------- contract


@every_strategy
@every_head
def test_table_is_a_decreasing_positive_float64_list_of_pairs(name, head):
    table = make_strategy(name, {}).inv_freq(head)
    assert table.dtype == np.float64
    assert table.shape == (head.head_dim // 2,)
    assert np.isfinite(table).all()
    assert (table > 0).all()
    assert (np.diff(table) <= 0).all()


@every_strategy
@every_head
def test_no_pair_turns_faster_than_unscaled(name, head):
    table = make_strategy(name, {}).inv_freq(head)
    assert (table <= head.unscaled_inv_freq() * (1 + 1e-12)).all()


@every_strategy
def test_barely_longer_target_barely_changes_the_table(name):
    table = make_table(name, {}, Head(128, 1e4, 4096, 4097))
    unscaled = LLAMA_2.unscaled_inv_freq()
    assert np.abs(np.array(table.inv_freq) / unscaled - 1).max() < 1e-3
    assert table.attention_factor == pytest.approx(1, abs=1e-3)


@every_strategy
@every_head
def test_transformers_computes_the_same_table_from_what_is_written(name, head):
    """3e-7: transformers evaluates the formulas in float32, whose rounding is 6e-8 a step."""
    table = make_table(name, {}, head)
    inv_freq, attention_factor = transformers_table(head, table.rope_parameters)
    np.testing.assert_allclose(inv_freq, table.inv_freq, rtol=3e-7)
    assert attention_factor == pytest.approx(table.attention_factor, rel=1e-7)


@every_strategy
@every_head
def test_every_table_can_also_be_written_as_longrope(name, head):
    table = make_table(name, {}, head)
    written = longrope_parameters(head, np.array(table.inv_freq), table.attention_factor)
    inv_freq, attention_factor = transformers_table(
        head, {"rope_theta": head.rope_theta, **written}
    )
    np.testing.assert_allclose(inv_freq, table.inv_freq, rtol=3e-7)
    assert attention_factor == pytest.approx(table.attention_factor, rel=1e-7)


@every_strategy
def test_what_is_written_names_theta_and_native_window_and_survives_json(name):
    table = make_table(name, {}, LLAMA_2)
    assert {"rope_theta", "rope_type", "original_max_position_embeddings"} <= {
        *table.rope_parameters
    }
    assert RopeTable.from_json(json.loads(json.dumps(table.to_json()))) == table


@every_strategy
def test_strategy_and_knobs_are_documented(name):
    kind = strategies()[name]
    for text in (kind.summary, kind.source, kind.choose_when):
        assert text
        assert "\n" not in text
    for field in dataclasses.fields(kind):
        assert field.metadata["doc"]
        assert field.metadata["low"] <= field.metadata["high"]
    assert kind.__module__.endswith(name.replace("-", "_"))


@every_strategy
def test_bad_knobs_are_refused_by_name(name):
    with pytest.raises(InvalidInput, match="no_such_knob"):
        make_strategy(name, {"no_such_knob": 1})
    for field in dataclasses.fields(strategies()[name]):
        with pytest.raises(InvalidInput, match=field.name):
            make_strategy(name, {field.name: ["a list"]})


@every_strategy
def test_target_must_be_longer_than_the_native_window(name):
    with pytest.raises(InvalidInput, match="4096 is not longer than the native window 4096"):
        make_table(name, {}, Head(128, 1e4, 4096, 4096))


@every_strategy
@given(
    half=st.integers(2, 128),
    theta=st.floats(1e3, 1e8),
    window=st.integers(64, 131072),
    times=st.floats(1.01, 512),
)
def test_any_shape_gives_a_usable_table(name, half, theta, window, times):
    head = Head(2 * half, theta, window, int(window * times) + 1)
    table = make_table(name, {}, head)
    inv_freq = np.array(table.inv_freq)
    assert (inv_freq > 0).all()
    assert (np.diff(inv_freq) <= 0).all()
    assert 1 <= table.attention_factor < 2


def transformers_table(head: Head, rope_parameters: dict) -> tuple[list[float], float]:
    """`inv_freq` and attention factor as a stock Llama builds them from a config."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=2 * head.head_dim,
        num_attention_heads=2,
        head_dim=head.head_dim,
        max_position_embeddings=head.target_length,
        rope_parameters=dict(rope_parameters),
    )
    rotary = LlamaRotaryEmbedding(config)
    return rotary.inv_freq.double().tolist(), float(rotary.attention_scaling)


# -------------------------------------------------------------- linear


def test_linear_divides_every_pair_by_the_factor():
    table = make_table("linear", {}, LLAMA_2)
    np.testing.assert_array_equal(np.array(table.inv_freq) * 4, LLAMA_2.unscaled_inv_freq())
    assert table.inv_freq[0] == 0.25
    assert table.rope_parameters == {
        "rope_type": "linear",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 4096,
    }


# -------------------------------------------------------------- ntk


@pytest.mark.parametrize(
    ("theta", "alpha", "golden"),
    [
        (1e4, 4, 40889.9),
        (1e4, 8, 82684.6),
        (1e4, 16, 167198.7),
        (5e5, 2, 1.011e6),
        (5e5, 4, 2.044e6),
        (5e5, 8, 4.134e6),
    ],
)
def test_ntk_base(theta, alpha, golden):
    by_target = make_table("ntk", {}, Head(128, theta, 4096, 4096 * alpha))
    by_knob = make_table("ntk", {"alpha": alpha}, Head(128, theta, 4096, 5000))
    for table in (by_target, by_knob):
        assert table.rope_parameters["rope_theta"] == pytest.approx(golden, rel=3e-4)
        assert table.rope_parameters["rope_type"] == "default"
        assert table.rope_theta == theta


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest_by_the_factor():
    divisors = LLAMA_2.unscaled_inv_freq() / make_table("ntk", {}, LLAMA_2).inv_freq
    assert divisors[0] == 1
    assert divisors[-1] == pytest.approx(4, rel=1e-12)


# -------------------------------------------------------------- yarn


@pytest.mark.parametrize(
    ("head_dim", "theta", "window", "ends"),
    [
        (128, 1e4, 2048, (16, 41)),
        (128, 1e4, 4096, (20, 46)),
        (128, 5e5, 8192, (18, 35)),
        (64, 5e5, 8192, (9, 18)),
        (64, 1e4, 2048, (8, 21)),
        (64, 1e5, 8192, (10, 20)),
    ],
)
def test_yarn_ramp_ends(head_dim, theta, window, ends):
    head = Head(head_dim, theta, window, 4 * window)
    assert make_strategy("yarn", {}).ramp_ends(head) == ends


@pytest.mark.parametrize(
    ("factor", "golden"),
    [(2, 1.069315), (4, 1.138629), (8, 1.207944), (16, 1.277259), (32, 1.346574)],
)
def test_yarn_attention_factor(factor, golden):
    table = make_table("yarn", {}, Head(128, 1e4, 4096, 4096 * factor))
    assert table.attention_factor == pytest.approx(golden, abs=1e-6)
    assert table.rope_parameters["attention_factor"] == table.attention_factor


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_blends_linearly_between():
    """Ends 20 and 46: pair 33 lies half-way, where the frequency is the mean of both."""
    ratio = np.array(make_table("yarn", {}, LLAMA_2).inv_freq) / LLAMA_2.unscaled_inv_freq()
    assert (ratio[:21] == 1).all()
    assert ratio[33] == pytest.approx((1 + 0.25) / 2)
    np.testing.assert_allclose(ratio[46:], 0.25)


def test_yarn_without_truncation_starts_between_pairs():
    head = Head(128, 1e4, 4096, 16384)
    low, high = make_strategy("yarn", {"truncate": False}).ramp_ends(head)
    assert (low, high) == pytest.approx((20.95, 45.03), abs=0.01)


def test_yarn_refuses_a_ramp_that_runs_backwards():
    with pytest.raises(InvalidInput, match="beta_fast 1 must be larger than beta_slow 2"):
        make_strategy("yarn", {"beta_fast": 1.0, "beta_slow": 2.0})
    slow = make_strategy("yarn", {"beta_fast": 1e9, "beta_slow": 1e8})
    with pytest.raises(InvalidInput, match="no pair turns that often in 4096 tokens"):
        slow.inv_freq(LLAMA_2)


def test_knob_types_and_ranges():
    with pytest.raises(InvalidInput, match="beta_fast is 'many', must be of type float"):
        make_strategy("yarn", {"beta_fast": "many"})
    with pytest.raises(InvalidInput, match="truncate is 3, must be of type bool"):
        make_strategy("yarn", {"truncate": 3})
    with pytest.raises(InvalidInput, match=r"alpha is -1, must lie in \[0, 1e\+06\]"):
        make_strategy("ntk", {"alpha": -1})
    assert make_strategy("yarn", {"beta_fast": 64}).beta_fast == 64
