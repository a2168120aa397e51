"""Bases that are scaled already: refused with both ways out, composed from their real table and
window, or replaced; against the table stock transformers computes for the base."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from giraffe_cli.checkpoint import head_to_extend, inspect
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import Head, make_table
from giraffe_cli.rope.install import finish_directory
from giraffe_cli.rundir import read_json
from giraffe_cli.tune.reading import table_as_it_is

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 5e4,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    "original_max_position_embeddings": 128,
    "attention_factor": 1.2,
}
SCALED = {
    "llama3": LLAMA3,
    "yarn": {**YARN, "rope_theta": 1e4},
    "longrope": {**LONGROPE, "rope_theta": 1e4},
}


@pytest.fixture
def scaled(tiny_llama, tmp_path):
    """`scaled("llama3")`: the tiny Llama, 128 native tokens, scaled to 1,024."""

    def make(name, window=1024, **fields):
        folder = tmp_path / name
        shutil.copytree(tiny_llama, folder)
        config = json.loads((folder / "config.json").read_text())
        rope = fields or SCALED[name]
        config |= {"max_position_embeddings": window, "rope_parameters": rope}
        config.pop("rope_theta", None)
        config.pop("rope_scaling", None)
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def stock(folder, position):
    """`(inv_freq, attention factor)` of stock transformers once it has seen `position`."""
    import torch
    from transformers import AutoModelForCausalLM

    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    rotary(torch.zeros(1, 1, 16), torch.tensor([[position]]))
    return np.array(rotary.inv_freq.tolist()), float(rotary.attention_scaling)


@pytest.mark.parametrize("name", SCALED)
def test_the_base_table_is_the_one_transformers_uses_at_its_reach(scaled, tmp_path, name):
    folder = scaled(name)
    found = inspect(str(folder), tmp_path)
    inv_freq, attention_factor = stock(folder, 1023)
    np.testing.assert_allclose(found.base_table, inv_freq, rtol=5e-7)
    assert found.base_attention_factor == pytest.approx(attention_factor, rel=1e-7)
    assert (found.native_length, found.reach) == (128, 1024)


def test_dynamic_is_taken_at_its_reach(scaled, tmp_path):
    """Factor 2 over a window of 1,024: transformers' table at 2,048 tokens."""
    folder = scaled("dynamic", rope_type="dynamic", factor=2.0, rope_theta=1e4)
    found = inspect(str(folder), tmp_path)
    inv_freq, _ = stock(folder, 2047)
    np.testing.assert_allclose(found.base_table, inv_freq, rtol=5e-7)
    assert (found.native_length, found.reach) == (1024, 2048)


def test_refusing_names_the_reason_and_both_commands(scaled, tmp_path):
    with pytest.raises(InvalidInput, match="already scaled: rope_type `llama3` takes its 128") as e:
        head_to_extend(inspect(str(scaled("llama3")), tmp_path), 4096, "refuse")
    assert "--on-existing-rope compose" in e.value.hint
    assert "--on-existing-rope replace" in e.value.hint


def test_composing_starts_from_the_real_table_and_the_real_window(scaled, tmp_path):
    """linear ×4 over llama3 ×8: the fastest pair divided by 4, the slowest by 32."""
    checkpoint = inspect(str(scaled("llama3")), tmp_path)
    head = head_to_extend(checkpoint, 4096, "compose")
    assert head.original_max_position_embeddings == 1024
    table = make_table("linear", {}, head)
    np.testing.assert_allclose(np.array(table.inv_freq) * 4, checkpoint.base_table)
    assert table.rope_parameters["rope_type"] == "longrope"
    divisors = table.rope_parameters["long_factor"]
    assert divisors[0] == pytest.approx(4)
    assert divisors[-1] == pytest.approx(32)


def test_composing_multiplies_the_attention_factors(scaled, tmp_path):
    checkpoint = inspect(str(scaled("yarn")), tmp_path)
    table = make_table("yarn", {}, head_to_extend(checkpoint, 4096, "compose"))
    expected = (0.1 * np.log(8) + 1) * (0.1 * np.log(4) + 1)
    assert table.attention_factor == pytest.approx(expected)
    assert table.rope_parameters["long_mscale"] == table.attention_factor


def test_replacing_forgets_the_scaling(scaled, tmp_path):
    checkpoint = inspect(str(scaled("llama3")), tmp_path)
    table = make_table("yarn", {}, head_to_extend(checkpoint, 512, "replace"))
    assert table == make_table("yarn", {}, Head(16, 5e4, 128, 512))
    assert table.rope_parameters["rope_type"] == "yarn"


@pytest.mark.parametrize("how", ["compose", "replace"])
@pytest.mark.parametrize("name", SCALED)
def test_short_context_is_held_against_the_base_as_it_is(scaled, tmp_path, name, how):
    """Under `replace` it was held against plain θ, under which the weights were never trained: a
    linear ×2 of calf has 4.10 nats as it is and 3.25 so."""
    checkpoint = inspect(str(scaled(name)), tmp_path)
    found = table_as_it_is(checkpoint, head_to_extend(checkpoint, 4096, how))
    np.testing.assert_allclose(found.inv_freq, checkpoint.base_table, rtol=1e-12)
    assert found.attention_factor == pytest.approx(checkpoint.base_attention_factor)


def test_short_text_under_dynamic_is_not_scaled(scaled, tmp_path):
    fields = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    checkpoint = inspect(str(scaled("dynamic", 128, **fields)), tmp_path)
    head = head_to_extend(checkpoint, 4096, "replace")
    assert table_as_it_is(checkpoint, head) == make_table("none", {}, head)


def test_show_takes_no_other_theta_than_a_composed_base_has(giraffe, scaled):
    shown = ("rope", "show", "yarn", "--model", scaled("llama3"), "--target-len", "4k")
    for option in (("--rope-theta", "1e7"), ("--original-len", "64k")):
        done = giraffe(*shown, "--on-existing-rope", "compose", *option)
        assert done.code == 2
        assert "--on-existing-rope compose takes the table that it has" in done.stderr
        assert giraffe(*shown, "--on-existing-rope", "replace", *option).code in (0, 3)


def test_the_reach_bounds_composing_and_the_native_window_replacing(scaled, tmp_path):
    checkpoint = inspect(str(scaled("llama3")), tmp_path)
    for how, window in (("refuse", 1024), ("compose", 1024), ("replace", 128)):
        with pytest.raises(InvalidInput, match=f"already reaches {window} tokens"):
            head_to_extend(checkpoint, window, how)


def test_an_unscaled_base_does_not_care(tiny_llama, tmp_path):
    checkpoint = inspect(str(tiny_llama), tmp_path)
    heads = {head_to_extend(checkpoint, 512, how) for how in ("refuse", "compose", "replace")}
    assert heads == {Head(16, 1e4, 128, 512)}


def test_a_directory_of_ours_is_composed_even_when_its_config_is_a_plain_theta(
    tiny_llama, tmp_path
):
    folder = shutil.copytree(tiny_llama, tmp_path / "ours")
    first = make_table("ntk", {}, Head(16, 1e4, 128, 1024))
    finish_directory(folder, first)
    with pytest.raises(InvalidInput, match="already scaled"):
        head_to_extend(inspect(str(folder), tmp_path), 4096, "refuse")
    head = head_to_extend(inspect(str(folder), tmp_path), 4096, "compose")
    table = make_table("linear", {}, head)
    np.testing.assert_allclose(np.array(table.inv_freq) * 4, first.inv_freq)


def test_incomplete_scaling_is_refused_by_name(scaled, tmp_path):
    folder = scaled("llama3", **{k: v for k, v in LLAMA3.items() if k != "low_freq_factor"})
    with pytest.raises(InvalidInput, match="llama3 scaling that cannot be computed.*low_freq") as e:
        inspect(str(folder), tmp_path)
    assert "giraffe verify" in e.value.hint


def test_an_unknown_type_can_be_replaced_only(scaled, tmp_path):
    folder = scaled("su", rope_type="su", factor=4.0, rope_theta=1e4)
    checkpoint = inspect(str(folder), tmp_path)
    with pytest.raises(InvalidInput, match="`su`, whose table is not known here"):
        head_to_extend(checkpoint, 4096, "compose")
    assert head_to_extend(checkpoint, 4096, "replace").base_table is None


def test_a_type_that_transformers_does_not_know_is_refused_as_any_other(giraffe, scaled, tmp_path):
    folder = scaled("su", rope_type="su", factor=4.0, rope_theta=1e4)
    command = ("extend", "--model", folder, "--target-len", "4096", "--steps", "1", "--no-eval")
    refused = giraffe(*command, "--dry-run", "--out", tmp_path / "run")
    assert refused.code == 3
    assert "already scaled: rope_type `su`" in refused.stderr


def test_the_other_reading_of_a_linear_window_is_named_and_can_be_taken(scaled, tmp_path):
    """Some name 1,024 where factor 4 over 256 reaches them; read as 4,096 by what loads them."""
    fields = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    with pytest.raises(InvalidInput, match="already reaches 4096 tokens") as e:
        head_to_extend(inspect(str(scaled("linear", **fields)), tmp_path), 2048, "refuse")
    assert "if max_position_embeddings 1024 is the window with its scaling" in e.value.hint
    folder = scaled("told", **fields, original_max_position_embeddings=256)
    checkpoint = inspect(str(folder), tmp_path)
    assert (checkpoint.native_length, checkpoint.reach) == (256, 1024)
    assert head_to_extend(checkpoint, 2048, "compose").original_max_position_embeddings == 1024


@pytest.mark.parametrize("how", ["compose", "replace"])
def test_extend_writes_a_proven_directory_either_way(giraffe, scaled, tmp_path, how):
    folder, out = scaled("llama3"), tmp_path / "run"
    done = giraffe(
        *("extend", "--model", folder, "--target-len", "4096", "--steps", "0", "--no-eval"),
        *("--rope", "yarn", "--on-existing-rope", how, "--out", out, "--json"),
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["verify"]["ok"]
    assert report["native_length"] == {"compose": 1024, "replace": 128}[how]
    inv_freq, _ = stock(out / "model", 4095)
    written = read_json(out / "rope.json")
    np.testing.assert_allclose(written["inv_freq"], inv_freq, rtol=5e-7)
    slowest = 5e4 ** -(14 / 16) / inv_freq[-1]
    assert slowest == pytest.approx({"compose": 8 * 4, "replace": 32}[how], rel=1e-6)


def test_extend_refuses_by_default(giraffe, scaled, tmp_path):
    done = giraffe(
        *("extend", "--model", scaled("llama3"), "--target-len", "4096", "--steps", "0"),
        *("--out", tmp_path / "run"),
    )
    assert done.code == 3
    assert "--on-existing-rope compose" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_option_without_effect_is_named(giraffe, tiny_llama, tmp_path):
    done = giraffe(
        *("extend", "--model", tiny_llama, "--target-len", "512", "--steps", "0", "--no-eval"),
        *("--on-existing-rope", "compose", "--out", tmp_path / "run"),
    )
    assert done.code == 0, done.stderr
    assert "--on-existing-rope compose has no effect" in done.stderr


@pytest.mark.parametrize("original", [128, None], ids=["Qwen's spelling", "no original"])
def test_yarn_over_the_whole_window_reaches_factor_times_it(scaled, tmp_path, original):
    """It was taken to reach its native window, with a table of four times that."""
    fields = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    if original:
        fields["original_max_position_embeddings"] = original
    found = inspect(str(scaled("qwen", window=128, **fields)), tmp_path)
    assert (found.native_length, found.reach) == (128, 512)
    inv_freq, factor = stock(found.path, 0)
    np.testing.assert_allclose(found.base_table, inv_freq, rtol=1e-6)
    assert found.base_attention_factor == pytest.approx(factor)
    head = head_to_extend(found, 1024, "compose")
    assert (head.original_max_position_embeddings, head.factor) == (512, 2.0)


def test_dynamic_that_names_its_native_window_has_the_table_of_its_reach(scaled, tmp_path):
    """A copy as the hint for misread windows asks for: 128 native tokens, 512 with the scaling;
    the table was that of 2,048."""
    fields = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    named = inspect(
        str(scaled("named", window=512, original_max_position_embeddings=128, **fields)), tmp_path
    )
    plain = inspect(str(scaled("plain", window=128, **fields)), tmp_path)
    assert (named.native_length, named.reach) == (plain.native_length, plain.reach) == (128, 512)
    assert named.base_table == plain.base_table


def test_dynamic_of_factor_1_is_the_unscaled_table(scaled, tmp_path):
    fields = {"rope_type": "dynamic", "factor": 1.0, "rope_theta": 1e4}
    found = inspect(str(scaled("one", window=128, **fields)), tmp_path)
    assert found.base_table == tuple(found.head(256).unscaled_inv_freq())


def test_yarn_that_names_its_reach_alone_is_told_how_to_name_its_window(scaled, tmp_path):
    """transformers takes the one window for the native one."""
    fields = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    found = inspect(str(scaled("one", window=512, **fields)), tmp_path)
    with pytest.raises(InvalidInput, match="already reaches 2048") as refused:
        head_to_extend(found, 1024, "compose")
    assert "write the one without as `original_max_position_embeddings`" in str(refused.value.hint)


def test_a_native_window_beyond_any_file_is_refused(scaled, tmp_path):
    fields = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    folder = scaled("far", window=128, original_max_position_embeddings=2**40, **fields)
    with pytest.raises(InvalidInput, match="has a scaling factor 2"):
        inspect(str(folder), tmp_path)
