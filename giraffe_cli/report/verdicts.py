"""What the numbers mean, in sentences; decided by interval bounds, never by means.

    extended at 16k minus extended at 1k: [−0.06, −0.04]  → uses context up to 16k: yes
                                          [−0.02, +0.03]  → not shown

`not shown` is an answer: the data do not settle the question either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from giraffe_cli.report.scored import Scored
from giraffe_cli.report.verdict import Verdict
from giraffe_cli.report.verdicts_gates import with_gates
from giraffe_cli.report.verdicts_loss import (
    base_beyond_window,
    beyond_domain,
    far_text_used,
    short_context_kept,
    uses_context,
)
from giraffe_cli.report.verdicts_retrieval import finds, looked_for


def run_verdicts(report: Mapping[str, Any]) -> list[Verdict]:
    """Of a run, in the order in which a reader asks; what was not measured says so."""
    answers = [*_in_order(Scored.of_run(report)), loads_anywhere(report)]
    return with_gates(answers, report.get("gates", []))


def evaluation_verdicts(scored: Scored) -> list[Verdict]:
    """Of an evaluation: only what it was asked to measure."""
    answers = [verdict for verdict in _in_order(scored) if verdict.answer != "not measured"]
    return with_gates(answers, scored.results.get("gates", []))


def _in_order(scored: Scored) -> list[Verdict]:
    short = scored.results.get("short_context", {})
    return [
        uses_context(scored),
        far_text_used(scored),
        short_context_kept(scored),
        *([short_context_kept(scored, other=True)] if "delta_nll_other" in short else []),
        *([beyond_domain(scored)] if "control" in scored.models else []),
        base_beyond_window(scored),
        *(finds(scored, task) for task in looked_for(scored)),
    ]


def loads_anywhere(report: Mapping[str, Any]) -> Verdict:
    """Did the reload in a process without giraffe agree with what was trained?"""
    claim = "loads in stock transformers"
    proof = report.get("verify") or {}
    checks = proof.get("checks", {})
    if not checks:
        return Verdict(claim, "not measured", "", "The directory was not verified.")
    passed = sum(bool(check["ok"]) for check in checks.values())
    return Verdict(
        claim,
        "yes" if proof["ok"] else "no",
        f"{passed} of {len(checks)} checks passed",
        "The written directory was reloaded from disk by a process that knows nothing of giraffe; "
        "weights, RoPE table and logits were compared with what was trained."
        if proof["ok"]
        else "The directory differs from what was trained; see the checks below.",
    )
