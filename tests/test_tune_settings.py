"""What is compared: variants of every strategy, in the order of the prior."""

from __future__ import annotations

import numpy as np
import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import Head, make_table, strategies
from giraffe_cli.tune.settings import distance, label_of, settings

LLAMA_2 = Head(128, 1e4, 4096, 16384)
CALF = Head(32, 1e4, 1024, 16384)


@pytest.mark.parametrize("name", sorted(strategies()))
@pytest.mark.parametrize("head", [LLAMA_2, CALF, Head(64, 1e5, 8192, 16384)])
def test_variants_make_tables_and_begin_with_the_defaults(name, head):
    kind = strategies()[name]
    variants = kind.variants(head)
    assert variants[0] == kind.example(head)
    tables = [make_table(name, knobs, head) for knobs in variants]
    assert len({(t.inv_freq, t.attention_factor) for t in tables}) == len(tables)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("ntk", [{}, {"alpha": 8.0}, {"alpha": 16.0}]),
        ("linear", [{}, {"factor": 8.0}]),
        ("llama3", [{}, {"factor": 8.0}]),
        ("yarn-revised", [{}, {"factor": 8.0}]),
        (
            "yarn",
            [{}, {"beta_fast": 128.0, "beta_slow": 2.0}, {"beta_fast": 16.0}, {"factor": 8.0}],
        ),
    ],
)
def test_named_variants_at_four_times_the_native_window(name, variants):
    assert strategies()[name].variants(LLAMA_2) == variants


def test_abf_varies_a_fitted_theta_by_four_and_never_below_the_bases():
    """Llama 2's last pair that turned is 45: θ = (16384/2π)^(128/90)."""
    fitted = (16384 / (2 * np.pi)) ** (128 / 90)
    near = [knobs["rope_theta"] for knobs in strategies()["abf"].variants(LLAMA_2)[1:]]
    assert near == pytest.approx([fitted / 4, fitted * 4])
    barely = Head(128, 1e4, 4096, 4097)  # fitted near the base's own θ: no quarter of it
    fitted = (4097 / (2 * np.pi)) ** (128 / 90)
    near = [knobs["rope_theta"] for knobs in strategies()["abf"].variants(barely)[1:]]
    assert near == pytest.approx([fitted * 4])


def test_every_strategy_is_compared_and_the_likeliest_is_first():
    found, left_out = settings(LLAMA_2)
    assert left_out == []
    assert {setting.strategy for setting in found} == {*strategies()}
    assert (found[0].label, found[0].strategy) == ("yarn", "yarn")
    away = {setting.label: distance(setting.table, found[0].table) for setting in found}
    order = list(dict.fromkeys(setting.strategy for setting in found))
    nearest = [min(away[s.label] for s in found if s.strategy == name) for name in order]
    assert nearest == sorted(nearest)
    for name in order:
        own = [s.label for s in found if s.strategy == name]
        assert [away[label] for label in own] == sorted(away[label] for label in own)
    assert [setting.strategy for setting in found[:4]] == ["yarn"] * 4


def test_equal_tables_are_one_setting():
    found, _ = settings(LLAMA_2, ["ntk"], {"ntk": {"alpha": 4.0}})
    assert [setting.label for setting in found] == ["ntk alpha=4"]
    both, _ = settings(LLAMA_2, ["ntk", "abf"], {"abf": {"rope_theta": 40889.919}})
    assert len(both) == 4
    theta = make_table("ntk", {}, LLAMA_2).rope_parameters["rope_theta"]
    same, _ = settings(LLAMA_2, ["ntk", "abf"], {"ntk": {}, "abf": {"rope_theta": theta}})
    assert len(same) == 1


def test_given_knobs_stand_in_the_place_of_the_variants():
    found, _ = settings(LLAMA_2, ["yarn", "linear"], {"yarn": {"beta_fast": 64.0}})
    assert {s.label for s in found if s.strategy == "yarn"} == {"yarn beta_fast=64"}
    assert len([s for s in found if s.strategy == "linear"]) == 2


def test_what_a_head_does_not_allow_is_left_out_and_named():
    fast = Head(16, 2.0, 4096, 16384)  # every pair turns more than 32 times
    found, left_out = settings(fast)
    assert found
    assert all(": " in problem for problem in left_out)
    assert {p.split()[0].rstrip(":") for p in left_out} <= {*strategies()}
    assert left_out


def test_refuses_what_it_does_not_know():
    with pytest.raises(InvalidInput, match="unknown RoPE strategy `yarm`"):
        settings(LLAMA_2, ["yarm"])
    with pytest.raises(InvalidInput, match="knobs of ntk have no effect"):
        settings(LLAMA_2, ["yarn"], {"ntk": {"alpha": 8.0}})
    with pytest.raises(InvalidInput, match="beta_fast"):
        settings(LLAMA_2, ["yarn"], {"yarn": {"beta_fast": -1.0}})


def test_labels_are_short():
    assert label_of("ntk", {"alpha": 32.0}) == "ntk alpha=32"
    assert label_of("longrope", {"factors": [1.0, 2.0]}) == "longrope factors=[2]"


@pytest.mark.parametrize("name", ["linear", "yarn", "yarn-revised", "ntk-by-parts", "llama3"])
class TestFactor:
    """`factor` above target/native: what the table would be for a longer target, for this one."""

    def test_divides_the_slowest_pair_by_it(self, name):
        table = make_table(name, {"factor": 8.0}, LLAMA_2)
        assert LLAMA_2.base_inv_freq()[-1] / table.inv_freq[-1] == pytest.approx(8.0)
        assert table.target_length == 16384

    def test_of_the_ratio_changes_nothing(self, name):
        given, plain = make_table(name, {"factor": 4.0}, LLAMA_2), make_table(name, {}, LLAMA_2)
        assert given.inv_freq == plain.inv_freq
        assert given.rope_parameters == plain.rope_parameters

    def test_equals_the_table_of_the_longer_target(self, name):
        longer = make_table(name, {}, Head(128, 1e4, 4096, 32768))
        table = make_table(name, {"factor": 8.0}, LLAMA_2)
        np.testing.assert_allclose(table.inv_freq, longer.inv_freq, rtol=1e-12)
        assert table.attention_factor == pytest.approx(longer.attention_factor)
