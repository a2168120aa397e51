"""YAML that a person wrote and meant otherwise than YAML 1.1 reads it."""

from __future__ import annotations

import pytest

from giraffe_cli.config.building import build
from giraffe_cli.errors import GiraffeError
from giraffe_cli.plain_yaml import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8:32", "8:32"),
        ("0100", "0100"),
        ("0o17", "0o17"),
        ("1_000", 1000),
        ("-3", -3),
        ("0x1F", 31),
        ("0", 0),
        ("16k", "16k"),
        ("1.5", 1.5),
        ("8e6", 8e6),
        ("1.5E-3", 1.5e-3),
        ("-2.e1", -20.0),
        ("e6", "e6"),
        ("yes", True),
    ],
)
def test_whole_numbers_are_those_of_yaml_1_2(text, value):
    found = parse_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "t: {s: 1, s: 2}", "x:\n- {k: 1, k: 1}"])
def test_a_key_that_stands_there_twice_is_refused(text):
    with pytest.raises(ValueError, match="the key '.' stands there twice"):
        parse_yaml(text)


def test_keys_that_an_anchor_brings_may_be_overruled():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


def test_yes_and_no_are_words_where_the_knob_has_them_and_truths_are_no_numbers():
    config = build({"target_length": "1k", "pack": {"bos": False, "eos": True}})
    assert (config.pack.bos, config.pack.eos) == ("no", "yes")
    for values in ({"seed": True}, {"train": {"steps": True}}, {"train": {"learning_rate": True}}):
        with pytest.raises(GiraffeError, match="True is no number"):
            build({"target_length": "1k", **values})
    with pytest.raises(GiraffeError, match="True is no number"):
        build({"target_length": True})


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_are_what_torch_and_numpy_take(seed):
    with pytest.raises(GiraffeError, match="seed"):
        build({"target_length": "1k", "seed": seed})
