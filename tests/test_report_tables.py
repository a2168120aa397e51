"""Numbers as people read them, and the tables on the console."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_report import make_report
from synthetic_results import by_length, make_results, score, share, with_control

from giraffe_cli.report import facts, numbers
from giraffe_cli.report.repeat import repeat_commands
from giraffe_cli.report.tables import summary_table


@pytest.fixture
def report() -> dict:
    return make_report(Path("run"), make_results())


# ── numbers ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("mean", "half", "shown"),
    [
        (-0.043, 0.011, "−0.043 ± 0.011"),
        (-0.05, 0.05, "−0.05 ± 0.05"),
        (0.0, 0.01, "0.000 ± 0.010"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (0.0123, 0.0004, "+0.0123 ± 0.0004"),
        (1.6, 0.31, "+1.60 ± 0.31"),
    ],
)
def test_digits_follow_the_interval_and_zero_has_no_sign(mean, half, shown):
    assert numbers.with_half_width(score(mean, half), sign=True) == shown


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (-0.05, "5% lower perplexity"),
        (0.005, "0.5% higher perplexity"),
        (1.5, "4.5 times the perplexity"),
    ],
)
def test_nats_in_plain_words(nats, text):
    assert numbers.perplexity_change(nats) == text


def test_the_table_of_pairs_is_counted():
    # theta 16, 4 pairs: 1, 1/2, 1/4, 1/8; the first kept, the second halved, two slowed by 4.
    rope = {"head_dim": 8, "rope_theta": 16.0, "inv_freq": [1, 1 / 4, 1 / 16, 1 / 32]}
    assert facts.describe_table(rope) == "4 pairs: 1 unchanged, 2 slowed by 4, 1 by 2"
    # by more than target over native window, as YaRN's own factor may be
    rope["inv_freq"] = [1, 1 / 2, 1 / 96, 1 / 192]
    assert facts.describe_table(rope) == "4 pairs: 2 unchanged, 2 slowed by 24"
    rope["inv_freq"] = [1, 1 / 2, 1 / 4, 1 / 8]
    assert facts.describe_table(rope) == "4 pairs: 4 unchanged"


def test_commands_quote_what_a_shell_would_split(report):
    report["run_dir"], report["model_dir"] = "my run", "my run/model"
    run = {"seed": 3, "eval": {"tasks": ["nll"], "documents": 8, "knobs": {"nll": {"anchors": 4}}}}
    extend, verify, evaluate = repeat_commands(report, run)
    assert extend == "giraffe extend --config 'my run'/run.yaml --out 'my run-again'"
    assert verify == "giraffe verify 'my run/model'"
    assert evaluate == (
        "giraffe eval 'my run/model' --base calf --lengths 1k,2k,4k,8k,16k --tasks nll "
        "--documents 8 --set nll.anchors=4 --seed 3"
    )


# ── console ──────────────────────────────────────────────────────────────────────────────────


def rendered(report: dict) -> str:
    console = Console(file=StringIO(), width=80)
    for part in summary_table(report):
        console.print(part)
    return console.file.getvalue()


def test_the_console_shows_a_row_a_length_the_verdicts_and_the_paths(report):
    text = rendered(report)
    rows = [line.split() for line in text.splitlines() if line.count("±") == 3]
    assert [row[0] for row in rows] == ["1k", "2k*", "4k*", "8k*", "16k*"]
    assert "…" not in text
    assert "2.95 ± 0.06" in text
    assert re.search(r"passkey +base +100 \(84-100\) .* 0 \(0-16\) +20 *\n", text)
    assert "90 (70-97)" in text
    assert "uses context up to 16k: yes, −0.050 ± 0.010 nats over 1k" in text
    assert "report  run/report.html" in text


@pytest.mark.parametrize("more", [(), ("niah-multikey-1", "niah-multivalue", "lines")])
def test_tables_stay_within_80_columns_whatever_was_scored(report, more):
    results = report["evaluation"]
    lengths = [512 * 2**n for n in range(9)]
    for task in ("passkey", *more):
        results["measures"][task] = results["measures"]["passkey"]
        for model in results["models"].values():
            model["tasks"][task] = by_length([share(20)] * 9, lengths)
    with_control(results)
    text = rendered(report)
    tables = text[: text.index("uses context up to")].splitlines()
    assert max(map(len, tables)) <= 80
    assert "…" not in text
    assert "other lengths: report.html" in " ".join(text.split())


def test_without_an_evaluation_the_console_shows_no_empty_table(report):
    report["evaluation"] = {}
    text = rendered(report)
    title, blank, verdict = text.splitlines()[:3]
    assert title.endswith(": 1k → 16k (yarn)")
    assert (blank, verdict) == ("", "uses context up to 16k: not measured")
    assert "% right" not in text


def test_brackets_in_a_name_are_text_not_markup(report):
    report["model"] = "[bold]x[/bold]"
    assert "[bold]x[/bold]" in rendered(report)


def test_the_evaluation_is_repeated_on_what_it_read():
    """Without these flags it was another evaluation."""
    asked = {
        "haystack": ["my hay.jsonl"], "other_data": ["code"], "files": {"lambada": "l.jsonl"},
        "harness": ["ruler"], "evaluator": "long", "chat": True, "gates": ["nll@1k<3"],
        "threshold": 0.8,
    }  # fmt: skip
    report = {"run_dir": "r", "model_dir": "r/model", "evaluation": {"lengths": [1024]}}
    told = repeat_commands(report, {"eval": asked})[-1]
    assert told == (
        "giraffe eval r/model --base BASE --lengths 1k --haystack 'my hay.jsonl' --other-data code "
        "--file lambada=l.jsonl --harness ruler --evaluator long --chat --gate 'nll@1k<3' "
        "--threshold 0.8"
    )
