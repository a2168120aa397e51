"""Numbers as people read them: a share is never rounded into all or none."""

from __future__ import annotations

import pytest

from giraffe_cli.report.numbers import (
    p_value,
    percent,
    proportion,
    whole_percent,
    with_half_width,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.425, "42%"),
        (0.995, "99.5%"),
        (329 / 330, "99.7%"),
        (5152 / 5153, ">99.9%"),
        (1 / 330, "0.3%"),
        (1 / 5153, "<0.1%"),
    ],
)
def test_all_and_none_are_said_of_all_and_none_alone(value, shown):
    assert percent(value) == shown


def test_differences_keep_their_sign():
    assert [whole_percent(value, "+") for value in (0.25, -0.25, 0, 1)] == [
        "+25",
        "-25",
        "+0",
        "+100",
    ]


def test_the_interval_is_shown_alike():
    score = {"mean": 0.999, "ci_low": 0.9, "ci_high": 0.9999}
    assert proportion(score) == "99.9% (90 to >99.9%)"


def test_an_interval_that_is_not_symmetric_is_written_out():
    """`4.20 ± 0.51` of it would have said 3.69 to 4.71."""
    skewed = {"mean": 4.198, "ci_low": 3.571, "ci_high": 4.593, "n": 4}
    assert with_half_width(skewed) == "4.20 (3.57 to 4.59)"
    assert with_half_width(skewed, sign=True) == "+4.20 (+3.57 to +4.59)"
    assert with_half_width(skewed, alone=False) == "4.20"  # the interval stands below it
    even = {"mean": 4.2, "ci_low": 3.69, "ci_high": 4.70, "n": 4}  # half a hundredth off
    assert with_half_width(even) == "4.20 ± 0.51"


@pytest.mark.parametrize(
    ("clusters", "value", "shown"),
    [
        (2, 0.5, "p 0.50, the least that 2 texts can give"),
        (5, 0.0625, "p 0.062, the least that 5 texts can give"),
        (5, 0.125, "p 0.12"),
        (6, 0.03125, "p 0.031"),
        (1, 1.0, "p 1.00"),
    ],
)
def test_a_p_that_so_few_texts_cannot_undercut_says_so(clusters, value, shown):
    """Signs of k differences that are all alike have p = 2^(1 - k)."""
    assert p_value({"p_value": value, "clusters": clusters}) == shown
