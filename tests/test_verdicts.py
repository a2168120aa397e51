"""What a run's numbers mean, decided by the bounds of their intervals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_report import make_report
from synthetic_results import between, make_results

from giraffe_cli.report.card_tables import markdown_tables
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdicts import run_verdicts


def answer(claim_start: str, report: dict) -> tuple[str, str]:
    """(answer, figures and meaning) of the one verdict whose claim starts so."""
    (verdict,) = [v for v in run_verdicts(report) if v.claim.startswith(claim_start)]
    return verdict.answer, f"{verdict.figures} | {verdict.meaning}"


@pytest.fixture
def report() -> dict:
    return make_report(Path("run"), make_results())


def set_paired(report: dict, low: float, high: float, *path: str) -> None:
    target = report["evaluation"]["paired"]["nll"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = between(low, high)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.06, -0.04, "yes"),
        (-0.09, 0.01, "not shown"),
        (0.01, 0.2, "no"),
        (-0.01, 0.0, "not shown"),
    ],
)
def test_long_context_is_used_only_when_the_whole_interval_lies_below_zero(
    report, low, high, expected
):
    set_paired(report, low, high, "length_minus_native", "checkpoint", "16384")
    assert answer("uses context", report)[0] == expected


@given(low=st.floats(-2, 2), width=st.floats(0, 1), share_below=st.floats(0, 1))
def test_the_mean_never_decides(low, width, share_below):
    report = make_report(Path("run"), make_results())
    path = ("length_minus_native", "checkpoint", "16384")
    set_paired(report, low, low + width, *path)
    nested = report["evaluation"]["paired"]["nll"]["length_minus_native"]["checkpoint"]
    nested["16384"]["mean"] = low + share_below * width
    expected = "yes" if low + width < 0 else "no" if low > 0 else "not shown"
    assert answer("uses context", report)[0] == expected


def test_the_yes_states_size_interval_and_perplexity(report):
    found, text = answer("uses context up to 16k", report)
    assert found == "yes"
    assert text.startswith("−0.050 ± 0.010 nats over 1k | ")
    assert "5% lower perplexity (95% interval −0.060 to −0.040 nats, n = 32)" in text


def test_an_open_answer_names_the_longest_length_with_a_shown_gain(report):
    set_paired(report, -0.02, 0.01, "length_minus_native", "checkpoint", "16384")
    set_paired(report, -0.02, 0.01, "length_minus_native", "checkpoint", "8192")
    assert answer("uses context", report)[1].endswith("A gain is shown up to 4k.")


@pytest.mark.parametrize(
    ("low", "high", "expected", "says_domain"),
    [
        (0.00, 0.05, "yes", False),
        (-0.30, -0.20, "yes", True),
        (-0.04, 0.02, "yes", True),
        (-0.10, 0.06, "not shown", True),
        (0.02, 0.06, "not shown", False),
        (0.06, 0.09, "no", False),
    ],
)
def test_short_context_is_judged_by_the_upper_bound_and_gains_are_called_domain(
    report, low, high, expected, says_domain
):
    report["evaluation"]["short_context"] = {"delta_nll": between(low, high)}
    found, text = answer("short context kept", report)
    assert found == expected
    assert ("domain" in text) == says_domain


def test_what_an_untrained_model_gains_within_the_window_is_its_tables(report):
    """No weight was changed: there is no training text whose domain it could be."""
    report["steps"] = 0
    report["evaluation"]["short_context"] = {"delta_nll": between(-0.30, -0.20)}
    text = answer("short context kept", report)[1]
    assert "A gain at this length is the table’s, not length" in text
    assert "domain" not in text
    table = "\n".join(markdown_tables(Scored.of_run(report)))
    assert "native length is the table's, not length" in table
    assert "domain" not in table


@pytest.mark.parametrize(
    ("low", "high", "claim", "expected"),
    [
        (1.4, 1.6, "base collapses", "yes"),
        (0.9, 1.6, "base gets worse", "yes"),
        (-0.1, 0.1, "base gets worse", "not shown"),
        (-0.2, -0.1, "base gets worse", "no"),
    ],
)
def test_a_base_is_called_collapsed_only_beyond_one_nat(report, low, high, claim, expected):
    set_paired(report, low, high, "length_minus_native", "base", "16384")
    assert answer(claim, report)[0] == expected


def test_nothing_is_claimed_that_was_not_measured(report):
    report["evaluation"] = report["verify"] = {}
    report["gates"] = []
    assert {v.answer for v in run_verdicts(report)} == {"not measured"}


def test_a_failed_check_is_a_no(report):
    report["verify"]["ok"] = report["verify"]["checks"]["weights"]["ok"] = False
    found, text = answer("loads in stock transformers", report)
    assert (found, text.split(" | ")[0]) == ("no", "3 of 4 checks passed")
