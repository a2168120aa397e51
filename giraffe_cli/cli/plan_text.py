"""A plan as tables for people: memory by part, the ladder, time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from giraffe_cli.units import counted, format_bytes, format_length, format_seconds, three_digits

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PARTS = {
    "process": "interpreter, libraries, context",
    "weights": "weights of the base",
    "trained": "trained numbers, gradients, moments",
    "kept": "kept for the backward pass",
    "layer": "one layer at work",
    "loss": "loss of one chunk",
    "embeddings": "the embeddings' gradient",
    "optimizer": "the optimiser's temporaries",
    "heap": "freed, and kept by the heap",
    "total": "total",
}


def plan_tables(stages: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Of each stage (or control), its two tables and the sentences about time and what else would
    make it smaller."""
    shown: list[RenderableType] = []
    for stage in stages:
        estimate = stage["estimate"]
        window = format_length(estimate["window"])
        name = f"{format_length(stage['target_length'])}, windows of {window}"
        shown += [
            _memory_table(estimate, name),
            _ladder_table(estimate),
            *_host_lines(estimate),
            describe_time(estimate),
            *_proposal_lines(estimate),
            "",
        ]
    return shown


def describe_time(estimate: dict[str, Any]) -> str:
    """`12.3 s a step, 1,300 tokens/s, 100 steps in 20 min 30 s (measured by a trial step ...)`."""
    return (
        f"{three_digits(estimate['seconds_per_step'])} s a step, "
        f"{estimate['tokens_per_second']:,.0f} tokens/s, {counted(estimate['steps'], 'step')} in "
        f"{format_seconds(estimate['seconds'])} ({estimate['pace']['source']})"
        f"{_of_documents(estimate['attention_share'])}"
    )


def _of_documents(attention_share: float) -> str:
    """What windows of several documents save, in a plan that knows them."""
    if attention_share == 1:
        return ""
    return f"; documents attend to {attention_share:.1%} of what whole windows would"


def _memory_table(estimate: dict[str, Any], name: str) -> Table:
    from rich.table import Table

    count = estimate["processes"]
    of_each = f", each of {count} processes" if count > 1 else ""
    table = Table("part", "memory", title=f"predicted peak memory of training to {name}{of_each}")
    for part, size in estimate["bytes"].items():
        table.add_row(PARTS[part], format_bytes(size))
    return table


def _ladder_table(estimate: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(
        *("setting", "peak", "saves", "s a step", "fits"),
        title=f"the ladder, in {format_bytes(estimate['usable_bytes'])}",
    )
    first = estimate["ladder"][0]["bytes"]
    for rung in estimate["ladder"]:
        table.add_row(
            ("> " if rung["taken"] else "  ") + rung["name"],
            format_bytes(rung["bytes"]),
            format_bytes(first - rung["bytes"]) if rung["bytes"] != first else "",
            three_digits(rung["seconds_per_step"]),
            "yes" if rung["fits"] else "no",
        )
    return table


def _host_lines(estimate: dict[str, Any]) -> list[str]:
    """What a machine's processes pin of its host memory."""
    pinned = estimate["pinned_bytes"]
    return [f"host memory pinned on each machine: {format_bytes(pinned)}"] if pinned else []


def _proposal_lines(estimate: dict[str, Any]) -> list[str]:
    """What would make it fit and is not done unasked; nothing where it fits."""
    if estimate["fits"]:
        return []
    return [
        f"{'fits' if one['fits'] else 'does not fit either'} in {format_bytes(one['bytes'])}: "
        f"{one['what']} ({one['how']}){_caution(one['how'])}"
        for one in estimate["proposals"]
    ]


def _caution(how: str) -> str:
    return "; it may not teach the use of far text" if how.startswith("--window") else ""
