"""From scored samples to `results.json`: scores, paired differences, effective lengths.

A `Sample` is what one subject did with one example; every measure of its task makes one
`Scoreboard` of them. Everything here is a pure function of the samples, the seed and the tasks, so
that the same samples give the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from giraffe_cli.evals.base import (
    AbstractTask,
    Example,
    Measure,
    Outcome,
    Value,
    measure_name,
)
from giraffe_cli.evals.short_context import short_context
from giraffe_cli.evals.statistics import (
    FEWEST_CLUSTERS,
    Score,
    clustered_bootstrap,
    paired_difference,
    wilson,
)

RETAINED_SHARE = 0.9
"""A retrieval score counts as kept at this share of the reference score."""

RULES = {
    "interval_proportion": "Wilson 95 % interval over samples",
    "interval_mean": "percentile 95 % bootstrap over documents, 10,000 resamples",
    "paired": "mean difference over the same samples, resampled by document",
    "control": (
        "trained on the same documents and tokens within the native window, unscaled, and scored "
        "up to that window; control_minus_base is the training text's domain, "
        "checkpoint_minus_native_control what length brings beyond it"
    ),
    "effective_length_mean": (
        "largest evaluated length L at or above the native window such that at L and every shorter "
        "one the upper 95 % bound of the paired difference NLL(L) - NLL(native) is at most 0"
    ),
    "effective_length_proportion": (
        "largest evaluated length L such that at L and every shorter one the lower 95 % bound is "
        "at least 0.9 of the base's mean at the longest length within its native window (of the "
        "checkpoint's own mean there when no base is given); null when the shortest already fails"
    ),
}


@dataclass(frozen=True)
class Sample:
    """One example, what a subject did with it, and its scores by measure."""

    subject: str
    task: str
    example: Example
    outcome: Outcome
    scores: Mapping[str, Value]
    curve: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        """One line of `samples.jsonl`; its prompt lies in `prompts.jsonl.gz` by `prompt_sha256`."""
        nll, example, outcome = self.outcome.target_nll, self.example, self.outcome
        return {
            "key": example.key,
            "pair": example.pair,
            "subject": self.subject,
            "task": self.task,
            "length": example.length,
            "prompt_tokens": len(example.token_ids),
            "prompt_sha256": example.digest,
            "num_targets": example.num_targets,
            "max_new_tokens": example.max_new_tokens,
            "cluster": example.cluster,
            "details": example.details,
            "answers": example.answers,
            "text": outcome.text,
            "mean_nll": float(nll.mean()) if len(nll) else None,
            "candidates": example.candidates,
            "candidate_nll": outcome.candidate_nll,
            "scores": {name: score.value for name, score in self.scores.items()},
        }


class Entry(NamedTuple):
    """One sample's value of one measure."""

    subject: str
    example: Example
    value: Value


class Scoreboard:
    """The samples of one measure, scored and compared; lengths ascend."""

    def __init__(
        self,
        name: str,
        measure: Measure,
        entries: Iterable[Entry],
        native_length: int,
        seed: int,
    ) -> None:
        self.name, self.measure = name, measure
        self.native_length, self.seed = native_length, seed
        self.groups: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self.controls: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            is_control = bool(entry.example.details.get("control"))
            target = self.controls if is_control else self.groups
            target[entry.subject][entry.example.length].append(entry)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Mean and interval by the measure's kind."""
        values = [entry.value.value for entry in entries]
        if self.measure.kind == "proportion":
            return wilson(sum(values), len(values))
        return clustered_bootstrap(
            values,
            [entry.example.cluster for entry in entries],
            self.seed,
            weights=[entry.value.weight for entry in entries],
        )

    def by_length(self, subject: str) -> dict[str, Score]:
        """Length → score of `subject`."""
        return self._scores(self.groups[subject])

    def controls_by_length(self, subject: str) -> dict[str, Score]:
        """Length → score of the control prompts; empty when the task has none."""
        return self._scores(self.controls[subject])

    def by_depth(self, subject: str) -> dict[str, dict[str, Score]]:
        """Length → depth (`"0.33"`) → score; empty when samples have no depth."""
        table: dict[str, dict[str, Score]] = {}
        for length, entries in sorted(self.groups[subject].items()):
            depths: dict[float, list[Entry]] = defaultdict(list)
            for entry in entries:
                if "depth" in entry.example.details:
                    depths[entry.example.details["depth"]].append(entry)
            if depths:
                table[str(length)] = {f"{d:.2f}": self.score(s) for d, s in sorted(depths.items())}
        return table

    def length_minus_native(self, subject: str) -> dict[str, Score]:
        """Length → paired difference to the same samples at the native length."""
        return self.minus_native(subject, subject)

    def between(self, subject: str, other: str) -> dict[str, Score]:
        """Length → paired difference `subject` - `other`, where both were scored."""
        ours, theirs = self.groups[subject], self.groups[other]
        shared = [length for length in ours if length in theirs]
        return self._differences(lambda length: (ours[length], theirs[length]), shared)

    def minus_native(self, subject: str, other: str) -> dict[str, Score]:
        """Length → paired difference to what `other` scores on the same targets at the native
        length; empty where it was not scored there."""
        native = self.groups[other].get(self.native_length)
        if not native:
            return {}
        lengths = self.groups[subject]
        return self._differences(lambda length: (lengths[length], native), lengths)

    def effective_length(self, subject: str) -> int | None:
        """See `RULES`; None when no length passes or there is nothing to compare with."""
        if self.measure.bounded:
            return self._longest(self.by_length(subject), self._keeps_retrieval)
        differences = self.length_minus_native(subject)
        reached = {k: v for k, v in differences.items() if int(k) >= self.native_length}
        return self._longest(reached, lambda difference: difference["ci_high"] <= 0)

    def _keeps_retrieval(self, score: Score) -> bool:
        reference = self._retrieval_reference()
        return reference > 0 and score["ci_low"] >= RETAINED_SHARE * reference

    def _retrieval_reference(self) -> float:
        """The base's mean at the longest length within the native window; 0 when none was run."""
        subject = "base" if "base" in self.groups else "checkpoint"
        within = [n for n in self.groups[subject] if n <= self.native_length]
        return self.score(self.groups[subject][max(within)])["mean"] if within else 0.0

    def _scores(self, lengths: Mapping[int, list[Entry]]) -> dict[str, Score]:
        return {str(length): self.score(s) for length, s in sorted(lengths.items()) if s}

    def _differences(
        self,
        pair: Callable[[int], tuple[list[Entry], list[Entry]]],
        lengths: Iterable[int],
    ) -> dict[str, Score]:
        found: dict[str, Score] = {}
        for length in sorted(lengths):
            minuend, subtrahend = pair(length)
            found[str(length)] = difference(minuend, subtrahend, self.seed)
        return found

    @staticmethod
    def _longest(scores: dict[str, Score], passes: Callable[[Score], bool]) -> int | None:
        """The last of the leading lengths that pass."""
        longest = None
        for length, score in scores.items():
            if not passes(score):
                break
            longest = int(length)
        return longest

    def warnings(self) -> list[str]:
        """What a reader must know before trusting an interval."""
        groups = [entries for lengths in self.groups.values() for entries in lengths.values()]
        fewest = min(len({entry.example.cluster for entry in entries}) for entries in groups)
        if self.measure.kind == "proportion":
            fewest = min(len(entries) for entries in groups)
            best, needed = wilson(fewest, fewest)["ci_low"], self._retrieval_reference()
            if best >= RETAINED_SHARE * needed:
                return []
            return [
                f"{self.name}: {fewest} samples cannot show {RETAINED_SHARE:.0%} of the reference "
                f"{needed:.2f}: {fewest} of {fewest} right has a lower bound of {best:.2f}; "
                "take more samples"
            ]
        if fewest >= FEWEST_CLUSTERS:
            return []
        return [
            f"{self.name}: {fewest} documents; intervals from fewer than {FEWEST_CLUSTERS} are "
            "too narrow to rely on"
        ]


def difference(minuend: Sequence[Entry], subtrahend: Sequence[Entry], seed: int) -> Score:
    """Mean paired difference of two groups of entries."""
    return paired_difference(
        {entry.example.pair: entry.value for entry in minuend},
        {entry.example.pair: entry.value for entry in subtrahend},
        {entry.example.pair: entry.example.cluster for entry in minuend},
        seed,
    )


def make_boards(
    tasks: Mapping[str, AbstractTask], samples: Sequence[Sample], native_length: int, seed: int
) -> dict[str, Scoreboard]:
    """A scoreboard for every measure that any sample bears on, by its name."""
    boards = {}
    for task_name, task in tasks.items():
        for measure_key, measure in task.measures.items():
            entries = [
                Entry(sample.subject, sample.example, sample.scores[measure_key])
                for sample in samples
                if sample.task == task_name and measure_key in sample.scores
            ]
            if entries:
                name = measure_name(task_name, measure_key)
                boards[name] = Scoreboard(name, measure, entries, native_length, seed)
    return boards


def compose(
    tasks: Mapping[str, AbstractTask],
    samples: Sequence[Sample],
    subjects: Sequence[str],
    native_length: int,
    seed: int,
) -> dict[str, Any]:
    """The scored part of `results.json`: `models` (scores only), `measures`, `paired`,
    `short_context`, `warnings`."""
    boards = make_boards(tasks, samples, native_length, seed)
    paired: dict[str, dict[str, Any]] = {
        name: {
            "checkpoint_minus_base": board.between("checkpoint", "base"),
            "length_minus_native": {s: board.length_minus_native(s) for s in subjects},
            **(_against_control(board) if "control" in subjects else {}),
        }
        for name, board in boards.items()
    }
    for task_name, task in tasks.items():
        for contrast, sides in task.contrasts.items():
            first, second = (boards.get(measure_name(task_name, side)) for side in sides)
            if first and second:
                paired[task_name][contrast] = {s: _contrast(first, second, s) for s in subjects}
    models = {
        subject: {**_scores_of(subject, boards), "curves": _curves_of(subject, samples, seed)}
        for subject in subjects
    }
    tested = [(s.example, s.outcome) for s in samples if s.subject == "checkpoint"]
    scores = models.get("checkpoint", {}).get("tasks", {})
    return {
        "models": models,
        "measures": {
            name: {
                "summary": board.measure.summary,
                "higher_is_better": board.measure.higher_is_better,
                "kind": board.measure.kind,
                "chance": board.measure.chance,
                "unit": board.measure.unit,
            }
            for name, board in boards.items()
        },
        "paired": paired,
        "short_context": short_context(paired, scores, tested, native_length, seed),
        "warnings": [
            *_empty(tasks, boards),
            *(warning for board in boards.values() for warning in board.warnings()),
        ],
    }


def _empty(tasks: Mapping[str, AbstractTask], boards: Mapping[str, Scoreboard]) -> list[str]:
    """A warning for each task without a sample that bears on its main measure."""
    return [
        f"{name}: no sample gives its main measure; {task.when_empty}"
        for name, task in tasks.items()
        if name not in boards
    ]


def _contrast(first: Scoreboard, second: Scoreboard, subject: str) -> dict[str, Score]:
    """Length → paired difference of two measures of one subject."""
    ours, theirs = first.groups[subject], second.groups[subject]
    return {
        str(length): difference(ours[length], theirs[length], first.seed)
        for length in sorted(ours)
        if length in theirs
    }


def _against_control(board: Scoreboard) -> dict[str, dict[str, Score]]:
    """Domain (the control's gain) told apart from length (what the checkpoint has beyond it)."""
    return {
        "control_minus_base": board.between("control", "base"),
        "checkpoint_minus_control": board.between("checkpoint", "control"),
        "checkpoint_minus_native_control": board.minus_native("checkpoint", "control"),
        "checkpoint_minus_native_base": board.minus_native("checkpoint", "base"),
    }


def _scores_of(subject: str, boards: Mapping[str, Scoreboard]) -> dict[str, Any]:
    """Scores, effective lengths, control prompts and scores by depth, each by measure."""
    own = {name: board for name, board in boards.items() if board.groups[subject]}
    return {
        "tasks": {name: board.by_length(subject) for name, board in own.items()},
        "effective_length": {name: b.effective_length(subject) for name, b in own.items()},
        "controls": {
            name: table
            for name, board in boards.items()
            if (table := board.controls_by_length(subject))
        },
        "by_depth": {
            name: depths for name, board in own.items() if (depths := board.by_depth(subject))
        },
    }


def _curves_of(subject: str, samples: Iterable[Sample], seed: int) -> dict[str, Any]:
    """Task → length → position → score."""
    points: dict[str, dict[str, dict[str, list[tuple[Value, str]]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for sample in samples:
        for position, value in sample.curve.items() if sample.subject == subject else ():
            at = points[sample.task][str(sample.example.length)][position]
            at.append((value, sample.example.cluster))
    return {
        task: {
            length: {position: _point(values, seed) for position, values in curve.items()}
            for length, curve in lengths.items()
        }
        for task, lengths in points.items()
    }


def _point(values: Sequence[tuple[Value, str]], seed: int) -> Score:
    return clustered_bootstrap(
        [value.value for value, _ in values],
        [cluster for _, cluster in values],
        seed,
        weights=[value.weight for value, _ in values],
    )
