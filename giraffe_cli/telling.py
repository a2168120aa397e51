"""What a run says of itself in lines: its plan before, its failed gates and its times after."""

from __future__ import annotations

from typing import Any

from giraffe_cli.config.base import AUTO
from giraffe_cli.errors import GateFailed
from giraffe_cli.gates import Gate
from giraffe_cli.model.levers import Levers
from giraffe_cli.progress import Reporter
from giraffe_cli.units import counted, format_bytes, format_length, format_seconds


def announce(the_plan: dict[str, Any], reporter: Reporter) -> None:
    """The plan in a few lines, before the money is spent."""
    model, estimate, strategy = the_plan["model"], the_plan["estimate"], the_plan["strategy"]
    if strategy == AUTO:
        strategy = "the table that a comparison on the training text finds best"
    reporter.info(
        f"{model['source']}: {format_length(the_plan['native_length'])} → "
        f"{format_length(the_plan['target_length'])} tokens by {strategy}"
    )
    for number, stage in enumerate(the_plan["stages"], start=1):
        name = f"stage {number}, {format_length(stage['target_length'])}"
        reporter.info(
            f"{name if len(the_plan['stages']) > 1 else 'training'}: "
            f"{counted(stage['steps'], 'step')} of {stage['tokens_per_step']} tokens, "
            f"windows of {format_length(stage['window'])} ({stage['positions']}), "
            f"{the_plan['dtype']}"
        )
    for stage in the_plan["control"]:
        reporter.info(
            f"control: {counted(stage['steps'], 'step')} of {stage['tokens_per_step']} tokens, "
            f"windows of {format_length(stage['window'])}, unscaled"
        )
    levers = Levers(**estimate["levers"]).sentence
    reporter.info(f"memory: about {format_bytes(estimate['bytes']['total'])} predicted; {levers}")


def settle_gates(gates: list[Gate], strict: bool, reporter: Reporter) -> None:
    """Warn of every failed gate.

    Raises:
        GateFailed: under `strict`, also where none was tested after all.
    """
    failed = [gate for gate in gates if not gate.ok]
    for gate in failed:
        reporter.warn(f"gate failed: {gate.sentence}")
    if strict and not gates:
        raise GateFailed("no gate was tested", "see the warnings in report.html")
    if failed and strict:
        raise GateFailed("; ".join(gate.sentence for gate in failed), "see report.html")


def describe_time(report: dict[str, Any]) -> str:
    """`train 1 min 20 s, eval 40 s; 2 min 10 s in all`."""
    seconds = dict(report["seconds"])
    total = seconds.pop("total")
    parts = ", ".join(f"{stage} {format_seconds(spent)}" for stage, spent in seconds.items())
    return f"{parts}; {format_seconds(total)} in all"
