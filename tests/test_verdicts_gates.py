"""Gates among the answers of a report: a failed one comes first, on every surface."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from synthetic_report import make_report, make_run
from synthetic_results import make_results

from giraffe_cli.gates import Gate
from giraffe_cli.report.tables import summary_table
from giraffe_cli.report.verdicts import run_verdicts
from giraffe_cli.report.write import write_report


@pytest.fixture
def report() -> dict:
    return make_report(Path("run"), make_results())


def gate(name, op, threshold, bound, ok, note=""):
    return dataclasses.asdict(Gate(name, op, threshold, bound, ok, note))


def test_failed_gates_are_the_first_verdict_with_their_sentences(report):
    report["gates"] = [
        gate("nll@16k-nll@1k", "<=", 0.05, 0.062, False),
        gate("passkey.ranked@16k", ">=", 0.5, 0.41, False),
        gate("base:effective_length.nll", ">=", 8192, 1024.0, False),
        gate("short_context.delta_nll", "<=", 0.05, 0.01, True),
        gate("short_context.kl_mean", "<", 0.05, None, False, "one document has no interval"),
    ]
    first, *others = run_verdicts(report)
    assert (first.claim, first.answer) == ("passes its quality gates", "no")
    assert first.figures.startswith(
        "4 of 5 failed: nll@16k-nll@1k: upper bound +0.062 (needs <= +0.050); passkey.ranked@16k: "
    )
    assert first.meaning == (
        "Asked for: loss at 16k minus loss at 1k at most 0.05; its 95% interval reaches up to "
        "0.062. "
        "Asked for: passkey.ranked at 16k at least 0.5; its 95% interval reaches down to 0.410. "
        "Asked for: the base’s effective length by nll at least 8k; it is 1k. "
        "Asked for: kl_mean, what changed within the native window, below 0.05; not tested: one "
        "document has no interval."
    )
    assert first.claim not in {verdict.claim for verdict in others}


def test_passed_gates_are_told_last_and_none_not_at_all(report):
    report["gates"] = [gate("nll@16k-nll@1k", "<=", 0.05, 0.01, True)]
    *_, last = run_verdicts(report)
    assert (last.claim, last.answer) == ("passes its quality gates", "yes")
    assert last.figures == "1 of 1 passed"
    report["gates"] = []
    assert "passes its quality gates" not in {verdict.claim for verdict in run_verdicts(report)}


def test_page_terminal_and_json_say_at_the_top_that_a_gate_failed(tmp_path):
    report = make_run(tmp_path)
    report["gates"] = [gate("nll@16k-nll@1k", "<=", 0.05, 0.062, False)]
    write_report(report, tmp_path, tmp_path / "model")
    page = (tmp_path / "report.html").read_text()
    told, table = page.index("1 of 1 failed: nll@16k-nll@1k"), page.index("<h2>Verification</h2>")
    assert told < page.index("Uses context up to") < table
    kept = json.loads((tmp_path / "report.json").read_text())["verdicts"][0]
    assert kept["answer"] == "no"
    assert "nll@16k-nll@1k: upper bound +0.062" in kept["figures"]
    lines = [part for part in summary_table(report) if isinstance(part, str)]
    assert "1 of 1 failed: nll@16k-nll@1k: upper bound +0.062" in lines[0]
