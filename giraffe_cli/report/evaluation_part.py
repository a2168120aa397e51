"""What both the page of a run and that of an evaluation show of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.report.evaluation_facts import (
    model_rows,
    reach_rows,
    reach_rules,
    setting_rows,
    short_rows,
)
from giraffe_cli.report.figure import Plot
from giraffe_cli.report.plots import depth_plots, evaluation_plots
from giraffe_cli.report.score_tables import TaskTable, task_tables
from giraffe_cli.report.scored import Scored

FEW = 5
"""Tasks whose tables all stand open on the page; of more, only those on the loss."""


@dataclass(frozen=True)
class EvaluationPart:
    """Prepared values of `evaluation.html.j2`."""

    scored: Scored
    plots: list[Plot]
    tables: list[TaskTable]
    reach: list[tuple[str, list[str]]]
    reach_rules: list[str]
    short: list[tuple[str, str, str]]
    settings: list[tuple[str, str]]
    models: list[tuple[str, list[tuple[str, str]]]]
    rules: list[tuple[str, str]]

    @classmethod
    def of(cls, scored: Scored) -> EvaluationPart:
        """Tables and pictures drawn from the numbers."""
        rules: dict[str, Any] = scored.results.get("rules", {})
        return cls(
            scored=scored,
            plots=evaluation_plots(scored),
            tables=task_tables(scored, depth_plots(scored)),
            reach=reach_rows(scored),
            reach_rules=reach_rules(scored),
            short=short_rows(scored),
            settings=setting_rows(scored),
            models=model_rows(scored),
            rules=[(name.replace("_", " "), str(rule)) for name, rule in rules.items()],
        )

    @property
    def model_names(self) -> list[str]:
        """The models as the page calls them, base first."""
        return [self.scored.name(model) for model in self.scored.models]

    def is_open(self, table: TaskTable) -> bool:
        """Whether the table stands open."""
        return len(self.tables) <= FEW or not table.is_share

    @property
    def all_plots(self) -> Sequence[Plot]:
        """Those of the tasks too: what is written as files."""
        return [*self.plots, *(plot for table in self.tables for plot in table.plots)]

    @property
    def explains(self) -> set[str]:
        """The paragraphs of `how to read` that this evaluation needs."""
        loss = {"loss"} if self.scored.lengths("nll") else set()
        shuffled = {"shuffled"} if self.scored.lengths("nll.shuffled") else set()
        asked = {name for name in ("passkey", "niah") if name in self.scored.tasks}
        retrieval = {"retrieval"} if self.scored.retrieval() else set()
        ranked = {"ranked"} if self.scored.retrieval("ranked") else set()
        curve = {"positions"} if "positions" in self.scored.tasks else set()
        domain = {"domain"} if loss and self.scored.has_base else set()
        return loss | shuffled | asked | retrieval | ranked | curve | domain
