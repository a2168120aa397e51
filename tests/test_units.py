"""Lengths, bytes and durations as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.errors import InvalidInput
from giraffe_cli.units import (
    format_bytes,
    format_length,
    format_seconds,
    parse_length,
    three_digits,
)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("16k", 16384), ("16K", 16384), (" 2k ", 2048), ("1m", 1048576), ("4097", 4097), (512, 512)],
)
def test_lengths_are_powers_of_two_or_plain(text, tokens):
    assert parse_length(text) == tokens


@pytest.mark.parametrize("text", ["", "0", "0k", "-1", "1.5k", "16kb", "k", "16 k", "ten", -4])
def test_what_is_no_length_is_refused_with_the_value(text):
    with pytest.raises(InvalidInput, match=f"`{text}` is not a length") as caught:
        parse_length(text)
    assert "16k" in caught.value.hint


@pytest.mark.parametrize(
    ("tokens", "text"), [(16384, "16k"), (1048576, "1m"), (1000, "1000"), (1536, "1536")]
)
def test_a_length_is_shown_as_it_would_be_typed(tokens, text):
    assert format_length(tokens) == text


@given(st.integers(min_value=1, max_value=2**40))
def test_formatting_inverts_parsing(tokens):
    assert parse_length(format_length(tokens)) == tokens


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (1.5e9, "1.5 GB"), (3.2e13, "32.0 TB")],
)
def test_bytes_are_decimal(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (45, "45 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.8, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_carry_into_the_next_unit(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (12.34, "12.3"), (999.4, "999"), (999.6, "1,000"), (1091.7, "1,090")],
)
def test_three_digits_need_no_power_of_ten(value, text):
    assert three_digits(value) == text
