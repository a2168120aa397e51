"""The proof."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from giraffe_cli.config.base import Length, Section
from giraffe_cli.errors import GiraffeError
from giraffe_cli.evals.suites import SUITES
from giraffe_cli.gates import parse_gate


class EvalConfig(Section):
    """The proof: base against extended on the same samples."""

    suite: Literal["quick", "standard", "full"] = "quick"
    """Which tasks and how many samples, where they are not given by name."""
    tasks: list[str] = Field(default_factory=list)
    """Names of the tasks; default: the suite's."""
    lengths: list[Length] | None = None
    """Context lengths in tokens; default: the native window, every fourfold of it, the target."""
    knobs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Knobs by task, such as `{nll: {anchors: 4}}`, over the suite's."""
    documents: int = Field(default=0, ge=0)
    """Held-out documents used at the most, longest first; 0: as many as the suite says."""
    data: list[str] = Field(default_factory=list)
    """Corpora to score on; default: the documents `pack.hold_out` kept out of training."""
    haystack: list[str] = Field(default_factory=list)
    """Corpora that needles are hidden in; default: `data`, else the documentation inside Python."""
    other_data: list[str] = Field(default_factory=list)
    """Corpora of another domain, for what the extension cost there."""
    files: dict[str, str] = Field(default_factory=dict)
    """Data files of tasks by name, such as `{hellaswag: hellaswag_val.jsonl.gz}`."""
    evaluator: str | None = None
    """A long-context checkpoint that chooses the tokens of `longppl`; default: the base."""
    chat: bool = False
    """Ask through the tokenizer's chat template; default: bare text, as base models read it."""
    gates: list[str] = Field(default_factory=list)
    """Thresholds such as `nll@16k-nll@8k<0`, tested against the interval's bound."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Share of right answers that the effective length asks for, as a lower bound; default: 0.9 of
    the base's share at its native window."""
    harness: list[str] = Field(default_factory=list)
    """Tasks of lm-eval on the same models: `ruler` for those that run here, or lm-eval's names."""
    harness_samples: int = Field(default=50, ge=1)
    """Samples of each task of `harness` at each length."""
    cache: str | None = None
    """Folder of scored samples that several runs may share; default: in the run folder."""
    processes: int | None = Field(default=None, ge=1)
    """Processes that share the reading, one for each GPU, or so many on a CPU; default: those of
    the training where they are given, else 1."""
    batch_tokens: int = Field(default=2048, ge=0)
    """Tokens in a row of prompts of at most 512; changes the speed. 0: one prompt at a time."""

    @property
    def tasks_are_the_suites(self) -> bool:
        """Whether the tasks are those that the suite names, so that one without its data file is
        left out; else each was asked for by name."""
        return tuple(self.tasks) == SUITES[self.suite].tasks

    @field_validator("gates")
    @classmethod
    def _gates_have_their_form(cls, gates: list[str]) -> list[str]:
        try:
            for gate in gates:
                parse_gate(gate)
        except GiraffeError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return gates

    @model_validator(mode="before")
    @classmethod
    def _the_suite_fills_what_is_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict) or str(values.get("suite", "quick")) not in SUITES:
            return values
        suite = SUITES[str(values.get("suite", "quick"))]
        tasks = values.get("tasks") or list(suite.tasks)
        given = values.get("knobs") or {}
        if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
            return values
        if not isinstance(given, dict):
            return values
        knobs = {name: dict(suite.knobs[name]) for name in tasks if name in suite.knobs}
        for name, own in given.items():
            knobs[name] = {**knobs.get(name, {}), **own} if isinstance(own, dict) else own
        documents = values.get("documents") or suite.documents
        return {**values, "tasks": tasks, "knobs": knobs, "documents": documents}
