"""Figures of papers and of other implementations, and end-points that can be checked by eye.

transformers' own `ROPE_INIT_FUNCTIONS` are the reference for its types, called on configs written
here by hand, so that nothing of ours is on both sides. They compute in float32: rtol 3e-7.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import Head, make_strategy, make_table
from giraffe_cli.rope.strategies._ramp import ramp_ends

LLAMA_2 = Head(128, 1e4, 4096, 16384)
LLAMA_3 = Head(128, 5e5, 8192, 65536)
FLOAT32 = 3e-7


def inv_freq(name: str, head: Head, **knobs) -> np.ndarray:
    return np.array(make_table(name, knobs, head).inv_freq)


def divisors(name: str, head: Head, **knobs) -> np.ndarray:
    """How much slower each pair turns than in the base."""
    return head.base_inv_freq() / inv_freq(name, head, **knobs)


def llama_31_base() -> tuple[float, ...]:
    """Llama 3.1's own table: 8 times slower below one turn in 8192 tokens, blended up to four."""
    plain = LLAMA_3.unscaled_inv_freq()
    kept = np.clip((8192 * plain / (2 * math.pi) - 1) / 3, 0, 1)
    return tuple(plain * (kept + (1 - kept) / 8))


LLAMA_31 = Head(128, 5e5, 131072, 524288, llama_31_base())
"""Llama 3.1, 128k to 512k."""

# ── published figures ────────────────────────────────────────────────────────────────────────


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
    ids=["llama", "llama-2", "llama-3", "llama-3.2-1b", "tinyllama", "smollm2-135m"],
)
def test_yarn_ramp_ends(head_dim, theta, window, ends):
    head = Head(head_dim, theta, window, 4 * window)
    assert make_strategy("yarn", {}).ramp_ends(head) == ends


@pytest.mark.parametrize(
    ("factor", "golden"),
    [(2, 1.069315), (4, 1.138629), (8, 1.207944), (16, 1.277259), (32, 1.346574)],
)
@pytest.mark.parametrize("name", ["yarn", "yarn-revised"])
def test_yarn_attention_factor(name, factor, golden):
    table = make_table(name, {}, Head(128, 1e4, 4096, 4096 * factor))
    assert table.attention_factor == pytest.approx(golden, abs=1e-6)
    assert table.rope_parameters["attention_factor"] == table.attention_factor


@pytest.mark.parametrize(
    ("window", "factor", "golden", "digits"),
    [(4096, 4, 1.080123, 1e-6), (4096, 8, 1.118034, 1e-6), (8192, 8, 1.1094, 1e-4)],
)
def test_longrope_attention_factor(window, factor, golden, digits):
    head = Head(8, 1e4, window, factor * window)
    table = make_table("longrope", {"factors": [1, 2, 3, 4]}, head)
    assert table.attention_factor == pytest.approx(golden, abs=digits)
    given = make_table("longrope", {"factors": [1, 2, 3, 4], "attention": 1.19}, head)
    assert given.attention_factor == 1.19


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


def test_ntk_by_parts_ramps_of_llama_2():
    assert make_strategy("ntk-by-parts", {}).ramps(LLAMA_2) == ((43, 48), (25, 41))


def test_llama_3_leaves_29_pairs_blends_6_and_divides_29():
    found = divisors("llama3", LLAMA_3)
    np.testing.assert_array_equal(found[:29], 1)
    assert ((found[29:35] > 1) & (found[29:35] < 8)).all()
    np.testing.assert_allclose(found[35:], 8, rtol=1e-14)


@pytest.mark.parametrize(
    ("theta", "window", "counts"),
    [(1e4, 2048, (41, 14, 9)), (1e4, 4096, (46, 14, 4)), (5e5, 8192, (35, 11, 18))],
)
def test_giraffe_truncation_keeps_slows_and_stops(theta, window, counts):
    head = Head(128, theta, window, 4 * window)
    kept, slowed, stopped = counts
    for table in (
        inv_freq("truncated", head),
        inv_freq("truncated", Head(128, theta, 1000, 4 * window), truncate_pos=window),
    ):
        np.testing.assert_array_equal(table[:kept], head.unscaled_inv_freq()[:kept])
        np.testing.assert_allclose(table[kept : kept + slowed], 2 * math.pi / (16 * window))
        found = head.unscaled_inv_freq()[kept + slowed :] / table[kept + slowed :]
        np.testing.assert_allclose(found, 1e9)
        assert len(found) == stopped


# ── transformers' own tables ─────────────────────────────────────────────────────────────────


def transformers_table(head: Head, window: int, seq_len: int | None = None, **written):
    """`(inv_freq, attention factor)` of `ROPE_INIT_FUNCTIONS[rope_type]`; `window` is the config's
    `max_position_embeddings`."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=2 * head.head_dim,
        num_attention_heads=2,
        head_dim=head.head_dim,
        max_position_embeddings=window,
        rope_parameters={"rope_theta": head.rope_theta, **written},
    )
    table, factor = ROPE_INIT_FUNCTIONS[written["rope_type"]](config, "cpu", seq_len=seq_len)
    return table.double().numpy(), factor


NATIVE_HEADS = {
    "llama-2 ×4": LLAMA_2,
    "llama-3 ×8": LLAMA_3,
    "llama-3.2-1b ×3.5": Head(64, 5e5, 8192, 28672),
    "smollm2 ×2": Head(64, 1e5, 8192, 16384),
    "calf ×16": Head(32, 1e4, 1024, 16384),
}
native_heads = pytest.mark.parametrize("head", NATIVE_HEADS.values(), ids=NATIVE_HEADS.keys())


def assert_same(head: Head, name: str, knobs: dict, reference, rtol: float = FLOAT32) -> None:
    table = make_table(name, knobs, head)
    np.testing.assert_allclose(table.inv_freq, reference[0], rtol=rtol)
    assert table.attention_factor == pytest.approx(reference[1], rel=1e-12)
    written = table.rope_parameters
    if written["rope_type"] != "default":
        read = transformers_table(head, head.target_length, head.target_length, **written)
        np.testing.assert_allclose(read[0], reference[0], rtol=rtol)
        assert read[1] == pytest.approx(reference[1], rel=1e-12)


@native_heads
def test_linear_is_transformers_linear(head):
    reference = transformers_table(head, head.target_length, rope_type="linear", factor=head.factor)
    assert_same(head, "linear", {}, reference)


@native_heads
@pytest.mark.parametrize("knob", [0.0, 1.0, 2.5])
def test_dynamic_is_transformers_dynamic_at_the_target(head, knob):
    """There `max_position_embeddings` is the native window and the text as long as the target."""
    reference = transformers_table(
        head,
        head.original_max_position_embeddings,
        head.target_length,
        rope_type="dynamic",
        factor=knob or head.factor,
    )
    assert_same(head, "dynamic", {"factor": knob}, reference)


@native_heads
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"truncate": False},
        {"beta_fast": 128.0, "beta_slow": 2.0},
        {"mscale": 0.707, "mscale_all_dim": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"mscale": 2.0, "mscale_all_dim": 0.5, "truncate": False, "beta_slow": 0.5},
    ],
    ids=str,
)
def test_yarn_is_transformers_yarn(head, knobs):
    reference = transformers_table(
        head,
        head.target_length,
        rope_type="yarn",
        factor=head.factor,
        original_max_position_embeddings=head.original_max_position_embeddings,
        **knobs,
    )
    assert_same(head, "yarn", knobs, reference)


@native_heads
def test_longrope_is_transformers_longrope(head):
    factors = np.geomspace(1, 2 * head.factor, head.head_dim // 2).tolist()
    reference = transformers_table(
        head,
        head.target_length,
        head.target_length,
        rope_type="longrope",
        short_factor=[1.0] * len(factors),
        long_factor=factors,
        factor=head.factor,
        original_max_position_embeddings=head.original_max_position_embeddings,
    )
    assert_same(head, "longrope", {"factors": factors}, reference)


@native_heads
@pytest.mark.parametrize(("factor", "low", "high"), [(0, 1, 4), (32, 1, 4), (8, 0.5, 10)])
def test_llama3_is_transformers_llama3(head, factor, low, high):
    """1e-6: near one turn float32's rounding of the blend counts against θ/factor, 32 times less
    than θ; 4.7e-7 was the worst of 36 shapes."""
    reference = transformers_table(
        head,
        head.target_length,
        rope_type="llama3",
        factor=factor or head.factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=head.original_max_position_embeddings,
    )
    knobs = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    assert_same(head, "llama3", knobs, reference, rtol=1e-6)


def test_llama3_beyond_a_factor_of_32_is_written_as_longrope():
    """There float32 costs transformers' own formula more than 1e-6, so a directory that says
    `llama3` would not hold the table that was trained."""
    native = make_table("llama3", {}, Head(32, 1e5, 4096, 32 * 4096))
    beyond = make_table("llama3", {}, Head(32, 1e5, 4096, 128 * 4096))
    assert native.rope_parameters["rope_type"] == "llama3"
    assert beyond.rope_parameters["rope_type"] == "longrope"


# ── named end-points ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["yarn", "yarn-revised", "ntk-by-parts", "llama3"])
@pytest.mark.parametrize("head", [LLAMA_2, LLAMA_3, LLAMA_31], ids=["llama-2", "llama-3", "3.1"])
def test_fastest_pairs_stay_and_slowest_are_divided_by_s(name, head):
    found = divisors(name, head)
    np.testing.assert_array_equal(found[:17], 1)
    np.testing.assert_allclose(found[-8:], head.factor, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "attention"), [("yarn", 1.138629), ("llama3", 1), ("linear", 1), ("ntk-by-parts", 1)]
)
def test_on_llama_31_the_slowest_pair_is_divided_by_both_factors(name, attention):
    """8 by Llama 3.1 itself, then s = 4: 32 times slower than θ^(-126/128) says."""
    table = make_table(name, {}, LLAMA_31)
    written = table.rope_parameters
    assert written["rope_type"] == "longrope"
    assert written["long_factor"][-1] == pytest.approx(8 * 4, rel=1e-12)
    assert written["long_factor"][0] == pytest.approx(4 if name == "linear" else 1, rel=1e-12)
    assert written["original_max_position_embeddings"] == 131072
    assert table.attention_factor == pytest.approx(attention, abs=1e-6)


def test_yarn_on_llama_31_ramps_over_the_pairs_that_turn_in_128k():
    """In its own table pair 34 turns 1.7 times in 131072 tokens, as pair 45 would unscaled."""
    low, high = ramp_ends(LLAMA_31, 32, 1)
    turns = LLAMA_31.turns()
    assert turns[low] >= 32 > turns[low + 1]
    assert turns[high - 1] >= 1 > turns[high]


def test_attention_factors_of_yarn_over_yarn_multiply():
    base = make_table("yarn", {}, LLAMA_2)
    head = Head(128, 1e4, 16384, 32768, base.inv_freq, base.attention_factor)
    assert make_table("yarn", {}, head).attention_factor == pytest.approx(1.138629 * 1.069315)
    assert make_table("linear", {}, head).attention_factor == pytest.approx(1.138629, abs=1e-6)


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


@pytest.mark.parametrize("head", [LLAMA_2, LLAMA_31], ids=["llama-2", "llama-3.1"])
def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest_by_the_factor(head):
    found = divisors("ntk", head)
    assert found[0] == 1
    assert found[-1] == pytest.approx(4, rel=1e-12)


def test_yarn_blends_frequencies_and_yarn_revised_wavelengths():
    """Ends 20 and 46: pair 33 lies half-way; the mean of 1 and 1/4 against the mean of 1 and 4."""
    plain, revised = divisors("yarn", LLAMA_2), divisors("yarn-revised", LLAMA_2)
    assert (1 / plain[33], revised[33]) == pytest.approx((0.625, 2.5))
    np.testing.assert_array_equal(plain[:21], 1)
    np.testing.assert_allclose(plain[46:], 4)
    assert (revised[21:46] > plain[21:46]).all()
    np.testing.assert_array_equal(revised[:21], 1)
    np.testing.assert_allclose(revised[46:], 4)


def test_yarn_without_truncation_starts_between_pairs():
    low, high = make_strategy("yarn", {"truncate": False}).ramp_ends(LLAMA_2)
    assert (low, high) == pytest.approx((20.95, 45.03), abs=0.01)


def test_yarn_refuses_a_ramp_that_runs_backwards():
    with pytest.raises(InvalidInput, match="beta_fast 1 must be larger than beta_slow 2"):
        make_strategy("yarn", {"beta_fast": 1.0, "beta_slow": 2.0})
    slow = make_strategy("yarn", {"beta_fast": 1e9, "beta_slow": 1e8})
    with pytest.raises(InvalidInput, match=r"in 4096 tokens the pairs turn 0\.0753 to 652 times"):
        slow.inv_freq(LLAMA_2)


def test_ntk_by_parts_is_plain_then_ntk_then_linear():
    """Llama-2: γ ends at pair 41 and β starts at 43, so 41 to 43 are NTK's alone."""
    found = inv_freq("ntk-by-parts", LLAMA_2)
    plain = LLAMA_2.unscaled_inv_freq()
    np.testing.assert_array_equal(found[:26], plain[:26])
    np.testing.assert_allclose(found[41:44], 40889.94243 ** (-np.arange(82, 88, 2) / 128))
    np.testing.assert_allclose(found[48:], plain[48:] / 4)
    # Pair 33 is half-way up γ's ramp: the mean of plain and NTK.
    assert found[33] == pytest.approx((plain[33] + 40889.94243 ** (-66 / 128)) / 2)


def test_power_halves_the_pair_in_the_middle():
    """Power 1, pair 32 of 64: half as fast; power 0.5: 0.7071; the slowest: 1/64 and 1/8."""
    assert divisors("power", LLAMA_2, power=1.0)[[0, 32, 63]] == pytest.approx([1, 2, 64])
    assert divisors("power", LLAMA_2)[[0, 32, 63]] == pytest.approx([1, math.sqrt(2), 8])
    scaled = divisors("power", LLAMA_2, power=1.0, scale=4.0)
    assert scaled[[0, 32, 63]] == pytest.approx([4, 8, 256])


def test_truncation_comes_after_scale_and_power():
    """d = 8, base 10^4: frequencies 1, 0.1, 0.01, 0.001; truncate_pos 100: b = 0.063, a = 0.0079.

    Scale 2 first: 0.5, 0.05, 0.005, 0.0005, so that pair 1 falls below b and pair 2 below a.
    Truncation first would keep pair 1 and slow pair 2.
    """
    head, slow = Head(8, 1e4, 100, 400), 2 * math.pi / 1600
    found = inv_freq("truncated", head)
    assert found == pytest.approx([1, 0.1, slow, 1e-12])
    assert inv_freq("truncated", head, scale=2.0) == pytest.approx([0.5, slow, 5e-12, 5e-13])
    # Power 2 multiplies by 1, 9/16, 1/4, 1/16: 0.1 becomes 0.056, 0.01 becomes 0.0025.
    powered = inv_freq("truncated", head, power=2.0)
    assert powered == pytest.approx([1, slow, 0.0025e-9, 0.0000625e-9])


@pytest.mark.parametrize("head", [LLAMA_2, LLAMA_3, LLAMA_31], ids=["llama-2", "llama-3", "3.1"])
def test_fitted_abf_gives_the_last_pair_that_turned_the_target_as_wavelength(head):
    table, turns = inv_freq("abf", head), head.turns()
    last = np.flatnonzero(turns >= 1)[-1]
    assert 2 * math.pi / table[last] == pytest.approx(head.target_length, rel=1e-9)
    # Slower pairs end the long window within the part of a turn that they made in the short one.
    angle = table * head.target_length
    assert (angle[last + 1 :] <= 2 * math.pi * turns[last + 1 :]).all()
    assert table[0] == head.base_inv_freq()[0]


def test_abf_of_an_unscaled_base_is_a_theta():
    """Llama-3: pair 34 of 64 is the last that turns in 8192 tokens, (65536/2π)^(64/34) = 3.66e7."""
    fitted = make_table("abf", {}, LLAMA_3)
    assert fitted.rope_parameters["rope_theta"] == pytest.approx((65536 / 2 / math.pi) ** (64 / 34))
    assert fitted.rope_parameters["rope_theta"] == pytest.approx(3.66e7, rel=1e-3)
    given = make_table("abf", {"rope_theta": 8e6}, LLAMA_3)
    assert given.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 8e6,
        "original_max_position_embeddings": 8192,
    }
    assert given.inv_freq == pytest.approx((8e6 ** -LLAMA_3.exponents()).tolist())


@pytest.mark.parametrize(
    ("head", "knobs", "message"),
    [
        (LLAMA_3, {"rope_theta": 4e5}, "rope_theta 400000 is below the base's 500000"),
        (Head(64, 1e4, 6, 64), {}, "no pair turns in 6 tokens"),
        (Head(8, 1e8, 64, 256), {}, "only pair 0, which no base slows, turns in 64 tokens"),
        (Head(64, 1e4, 9, 4096), {}, r"fitted rope_theta is 10\^\d+, above 1e\+15: only 2 of 32"),
    ],
)
def test_abf_refuses_with_the_reason(head, knobs, message):
    with pytest.raises(InvalidInput, match=message):
        make_table("abf", knobs, head)


# ── identities between strategies, and direction ─────────────────────────────────────────────

UNSCALED = [
    ("ntk", {"alpha": 1.0}),
    ("llama3", {"factor": 1.0}),
    ("abf", {"rope_theta": 1e4}),
    ("power", {"power": 0.0}),
    ("longrope", {"factors": [1.0] * 64}),
    ("none", {}),
]


@pytest.mark.parametrize(("name", "knobs"), UNSCALED, ids=[name for name, _ in UNSCALED])
def test_knobs_that_say_no_scaling_leave_the_table(name, knobs):
    found = inv_freq(name, LLAMA_2, **knobs)
    np.testing.assert_allclose(found, LLAMA_2.unscaled_inv_freq(), rtol=1e-15)


@pytest.mark.parametrize(
    "name", ["linear", "ntk", "ntk-by-parts", "yarn", "yarn-revised", "llama3", "dynamic"]
)
def test_table_tends_to_the_bases_as_the_factor_tends_to_one(name):
    """Divisors lie within s of 1; dynamic's α grows with s²."""
    for window in (2**12, 2**20):
        found = divisors(name, Head(128, 1e4, window, window + 1))
        assert found.min() >= 1 - 1e-12
        assert found.max() <= 1 + 2.01 / window


def test_dynamic_of_factor_one_is_ntk():
    """f = 1: f·T/L0 - (f-1) is s."""
    np.testing.assert_allclose(
        inv_freq("dynamic", LLAMA_2, factor=1.0), inv_freq("ntk", LLAMA_2), rtol=1e-14
    )


@pytest.mark.parametrize("name", ["linear", "yarn", "yarn-revised", "llama3"])
def test_a_factor_of_its_own_is_that_of_a_target_so_far(name):
    """s = 8 under a target of four windows: table and attention of a target of eight."""
    found = make_table(name, {"factor": 8.0}, Head(128, 1e4, 4096, 16384))
    further = make_table(name, {}, Head(128, 1e4, 4096, 32768))
    assert found.inv_freq == further.inv_freq
    assert found.attention_factor == further.attention_factor
    assert found.inv_freq[-1] == pytest.approx(LLAMA_2.unscaled_inv_freq()[-1] / 8, rel=1e-12)


def test_power_and_truncation_without_power_are_linear():
    np.testing.assert_allclose(
        inv_freq("power", LLAMA_2, power=0.0, scale=4.0), inv_freq("linear", LLAMA_2)
    )
    # A window of 10^7 tokens, in which every pair turns: nothing is truncated.
    kept = inv_freq("truncated", LLAMA_2, truncate_pos=10**7, scale=4.0)
    np.testing.assert_allclose(kept, inv_freq("linear", LLAMA_2))


RISING = ["linear", "ntk", "ntk-by-parts", "yarn", "yarn-revised", "llama3", "dynamic"]


@pytest.mark.parametrize("name", [*RISING, "abf", "power"])
@pytest.mark.parametrize("head", [LLAMA_2, LLAMA_3, LLAMA_31], ids=["llama-2", "llama-3", "3.1"])
def test_slower_pairs_are_slowed_at_least_as_much(name, head):
    assert (np.diff(divisors(name, head)) >= -1e-12 * head.factor).all()


@pytest.mark.parametrize("name", [*RISING, "abf"])
def test_a_longer_target_slows_every_pair_at_least_as_much(name):
    tables = [inv_freq(name, Head(128, 1e4, 4096, 4096 * s)) for s in (2, 3, 4, 8, 32)]
    for shorter, longer in zip(tables, tables[1:], strict=False):
        assert (longer <= shorter * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", ["none", "power", "truncated"])
def test_tables_that_do_not_follow_the_target(name):
    first, second = (inv_freq(name, Head(128, 1e4, 4096, 4096 * s)) for s in (2, 8))
    np.testing.assert_array_equal(first, second)
