"""An evaluation as pages, cards and the console ask for it: a view of `results.json`.

    scored = Scored(results)
    scored.scores("nll", "checkpoint")[16384]["mean"]                 → 2.951
    scored.paired("nll", "length_minus_native", "checkpoint", 16384)  → {"mean": -0.043, ...}

What was not measured is absent: an empty mapping or None, never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask, tasks
from giraffe_cli.evals.measures import measure_name
from giraffe_cli.report.numbers import Score
from giraffe_cli.rundir import read_json

MODELS = ("base", "control", "checkpoint")
"""In the order in which they are shown; an evaluator is scored on nothing."""
OF_A_RUN = "extended"
"""What a run of `extend` calls the checkpoint that it made."""


class _Figures(TypedDict):
    mean: float
    ci_low: float
    ci_high: float
    n: int


class _Model(TypedDict):
    dtype: NotRequired[str]
    tasks: NotRequired[dict[str, dict[str, _Figures]]]


class _Gate(TypedDict):
    name: str
    op: Literal["<", "<=", ">", ">="]
    threshold: float
    bound: float | None
    ok: bool
    note: NotRequired[str]


class _Form(TypedDict):
    """What pages and tables cannot do without; `evals/schema.py` has the whole."""

    suite: str
    seed: int
    native_length: int
    lengths: Annotated[list[int], Field(min_length=1)]
    models: dict[str, _Model]
    measures: dict[str, dict[str, Any]]
    paired: dict[str, dict[str, dict[str, Any]]]
    settings: dict[str, Any]
    seconds: float
    gates: NotRequired[list[_Gate]]


def read_results(path: Path) -> dict[str, Any]:
    """The content of a `results.json`.

    Raises:
        InvalidInput: the file is missing, damaged or another one.
    """
    results: dict[str, Any] = read_json(path)
    try:
        TypeAdapter(_Form).validate_python(results)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise InvalidInput(
            f"{path} is no results.json of giraffe eval: {place}: {first['msg']}",
            f"giraffe eval CHECKPOINT --out {path.parent}",
        ) from error
    return results


@dataclass(frozen=True)
class Scored:
    """`results.json`, or `{}` where nothing was evaluated."""

    results: Mapping[str, Any]
    native_length: int
    """Tokens; differences and effective lengths refer to it."""
    target_length: int
    """Tokens that the checkpoint is meant to read."""
    tested: str = "checkpoint"
    """What the checkpoint is called."""
    trained: bool = True
    """False where it is known that no weight was changed: its gains are the table's."""
    lookups: float | None = None
    """Share of the trained windows' tokens that were look-ups, where it is known."""
    control_share: float = 1.0
    """How many tokens the control was trained on, of those that the checkpoint was."""

    @classmethod
    def of_run(cls, report: Mapping[str, Any]) -> Scored:
        """The evaluation inside a run's `report.json`."""
        native, target = int(report["native_length"]), int(report["target_length"])
        scores = report.get("evaluation") or {}
        trained, lookups = bool(report["steps"]), report.get("lookups")
        control, tokens = report.get("control"), report.get("trained_tokens")
        share = control["trained_tokens"] / tokens if control and tokens else 1.0
        return cls(scores, native, target, OF_A_RUN, trained, lookups, share)

    @classmethod
    def of_evaluation(cls, results: Mapping[str, Any]) -> Scored:
        """An evaluation on its own; its target is the longest length that was scored."""
        scored = [
            int(length)
            for model in results["models"].values()
            for scores in model.get("tasks", {}).values()
            for length in scores
        ]
        asked = map(int, results["lengths"])
        return cls(results, int(results["native_length"]), max(scored, default=max(asked)))

    @property
    def models(self) -> list[str]:
        """The models that were scored on anything."""
        found = self.results.get("models", {})
        return [name for name in MODELS if found.get(name, {}).get("tasks")]

    @property
    def has_base(self) -> bool:
        """Whether the base was scored too."""
        return "base" in self.models

    def name(self, model: str) -> str:
        """`base`, `control`, and what the checkpoint is called here."""
        return self.tested if model == "checkpoint" else model

    @property
    def subject(self) -> str:
        """The checkpoint in a sentence: `the checkpoint`, or `the extended model` of a run."""
        return "the extended model" if self.tested == OF_A_RUN else f"the {self.tested}"

    @property
    def measures(self) -> Mapping[str, Mapping[str, Any]]:
        """Measure → summary, higher_is_better, kind, chance, unit."""
        found: Mapping[str, Mapping[str, Any]] = self.results.get("measures", {})
        return found

    @property
    def tasks(self) -> dict[str, list[str]]:
        """Task → the names of its measures, main one first where there is one."""
        found: dict[str, list[str]] = {}
        for measure in self.measures:
            found.setdefault(measure.partition(".")[0], []).append(measure)
        return found

    def is_share(self, measure: str) -> bool:
        """Whether its scores lie in 0..1 and are shown in percent."""
        return self.measures.get(measure, {}).get("kind") in ("proportion", "share")

    def retrieval(self, kind: str = "") -> list[str]:
        """The measures of that name (`""`: generated, `ranked`) of every task that asks for
        something out of the context and ranks its answer too."""
        asking = [task for task in self.tasks if measure_name(task, "ranked") in self.measures]
        named = [measure_name(task, kind) for task in asking]
        return [measure for measure in named if self.is_share(measure)]

    def scores(self, measure: str, model: str) -> dict[int, Score]:
        """Length in tokens → score, shortest first."""
        return self._rising(self._model(model).get("tasks", {}).get(measure))

    def lengths(self, measure: str) -> list[int]:
        """Every length that any model was scored at, shortest first."""
        return sorted({n for model in self.models for n in self.scores(measure, model)})

    def differences(self, measure: str, *path: str) -> dict[int, Score]:
        """Length → paired difference, such as of `("checkpoint_minus_base",)`."""
        value: Any = self.results.get("paired", {}).get(measure, {})
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return self._rising(value)

    def paired(self, measure: str, *path: str, at: int) -> Score | None:
        """The paired difference at `at` tokens."""
        return self.differences(measure, *path).get(at)

    def contrasts(self, measure: str) -> list[str]:
        """The paired differences that each model has of its own, such as `real_minus_shuffled`."""
        found = self.results.get("paired", {}).get(measure, {})
        return [name for name, value in found.items() if set(value) & set(MODELS)]

    def by_depth(self, measure: str, model: str) -> Mapping[str, Mapping[str, Score]]:
        """Length → depth (0 first, 1 last) → score."""
        found: Mapping[str, Mapping[str, Score]] = (
            self._model(model).get("by_depth", {}).get(measure) or {}
        )
        return found

    def curve(self, task: str, model: str, length: int) -> dict[int, Score]:
        """Position in tokens → score."""
        curves = self._model(model).get("curves", {}).get(task, {})
        return self._rising(curves.get(str(length)))

    def curve_lengths(self, task: str) -> list[int]:
        """The lengths that a curve exists for."""
        found = [self._model(m).get("curves", {}).get(task, {}) for m in self.models]
        return sorted({int(length) for curves in found for length in curves})

    @property
    def harness(self) -> dict[str, dict[str, dict[int, Score]]]:
        """What lm-eval's own tasks gave: task → model → length in tokens → score."""
        found: dict[str, dict[str, dict[int, Score]]] = {}
        for model in self.models:
            for task, scores in self.results.get("harness", {}).get(model, {}).items():
                found.setdefault(task, {})[model] = self._rising(scores)
        return found

    def effective_length(self, measure: str, model: str) -> int | None:
        """Tokens, by the rule in the results; None when no length passes."""
        found = self._model(model).get("effective_length", {}).get(measure)
        return None if found is None else int(found)

    def has_reference(self, measure: str, model: str) -> bool:
        """Whether anything was scored within the native window, which effective lengths need."""
        return any(n <= self.native_length for n in self.scores(measure, model))

    def _model(self, model: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.results.get("models", {}).get(model, {})
        return found

    @staticmethod
    def _rising(scores: Mapping[str, Score] | None) -> dict[int, Score]:
        found = scores or {}
        return {int(n): found[n] for n in sorted(found, key=int) if found[n]}


def looks_like_shares(scores: Iterable[Score]) -> bool:
    """Whether all lie in 0..1: lm-eval does not say what kind of number a metric is."""
    return all(score["ci_low"] >= 0 and score["ci_high"] <= 1 for score in scores)


def describe_task(task: str) -> tuple[str, str]:
    """What a task asks for and where its protocol comes from; empty for one that is unknown."""
    kind: type[AbstractTask] | None = tasks().get(task)
    return (kind.summary, kind.source) if kind else ("", "")
