"""Numbers as people read them: a share is never rounded into all or none."""

from __future__ import annotations

import pytest

from giraffe_cli.report.numbers import percent, proportion, whole_percent


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
