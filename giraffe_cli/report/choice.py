"""Why a run has the RoPE table it has, as a part of its page and for its card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from giraffe_cli.report.comparison import ComparisonTable, comparison_plots, comparison_table
from giraffe_cli.report.figure import Plot
from giraffe_cli.units import counted, format_seconds


@dataclass(frozen=True)
class Choice:
    """Why a run has the table it has: prepared values of `choice.html.j2`."""

    reason: str
    about: str
    """What was compared, on how much, in what time; empty where nothing was."""
    table: ComparisonTable
    plots: list[Plot]
    warnings: list[str]
    open_rows: int = 12
    """Of the table; the others are behind a click."""

    @classmethod
    def of(cls, choice: Mapping[str, Any], strategy: str) -> Choice | None:
        """From `rope_choice` of `report.json`; None where the table was named by the user."""
        if not choice or choice["chosen"]["strategy"] != strategy:
            return None
        compared = was_measured(choice)
        return cls(
            reason=str(choice["reason"]),
            about=_about(choice) if compared else "",
            table=comparison_table(choice) if compared else ComparisonTable([], []),
            plots=comparison_plots(choice) if compared else [],
            warnings=[str(warning) for warning in choice.get("warnings", [])],
        )


def was_measured(choice: Mapping[str, Any]) -> bool:
    """Whether the chosen table is the best of several, and not a rule of thumb."""
    return bool(choice.get("settings") and choice.get("recommendation"))


def documents_read(comparison: Mapping[str, Any]) -> int:
    """Documents that the best was read on at the target."""
    best = comparison["settings"][0]
    return int(best[comparison["fitness"]][str(comparison["target_length"])]["clusters"])


def _about(choice: Mapping[str, Any]) -> str:
    count, budget = len(choice["settings"]), choice.get("budget_seconds")
    read = counted(documents_read(choice), "document")
    allowed = f" of {format_seconds(budget)} allowed" if budget is not None else ""
    return (
        f"{counted(count, 'setting')} of the strategies were compared on the base, before "
        f"training, on up to {read} of the training text, in "
        f"{format_seconds(choice['seconds'])}{allowed}."
    )
