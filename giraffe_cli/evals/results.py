"""From scored samples to `results.json`: scores, paired differences, effective lengths.

A `Sample` is one number one subject got on one example. Everything here is a pure function of the
samples, the seed and the tasks, so that the same samples give the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.evals.base import AbstractTask, Example, Outcome
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
    """One example, what a subject did with it, and its score."""

    subject: str
    task: str
    example: Example
    outcome: Outcome
    score: float

    @property
    def is_control(self) -> bool:
        """Controls are reported beside the score, never in it."""
        return bool(self.example.details.get("control"))

    def to_json(self) -> dict[str, Any]:
        """One line of `samples.jsonl`."""
        nll = self.outcome.target_nll
        return {
            "key": self.example.key,
            "subject": self.subject,
            "task": self.task,
            "length": self.example.length,
            "prompt_tokens": len(self.example.token_ids),
            "cluster": self.example.cluster,
            "details": self.example.details,
            "answer": self.example.answer,
            "text": self.outcome.text,
            "mean_nll": float(nll.mean()) if len(nll) else None,
            "score": self.score,
        }


class Scoreboard:
    """The samples of one task, scored and compared; lengths ascend."""

    def __init__(
        self,
        name: str,
        task: AbstractTask,
        samples: Iterable[Sample],
        native_length: int,
        seed: int,
    ) -> None:
        self.name, self.task = name, task
        self.native_length, self.seed = native_length, seed
        self.groups: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        self.controls: dict[str, dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        for sample in samples:
            target = self.controls if sample.is_control else self.groups
            target[sample.subject][sample.example.length].append(sample)

    def score(self, samples: Sequence[Sample]) -> Score:
        """Mean and interval by the task's kind."""
        values = [sample.score for sample in samples]
        if self.task.proportion:
            return wilson(sum(values), len(values))
        return clustered_bootstrap(values, [s.example.cluster for s in samples], self.seed)

    def by_length(self, subject: str) -> dict[str, Score]:
        """Length → score of `subject`."""
        return self._scores(self.groups[subject])

    def controls_by_length(self, subject: str) -> dict[str, Score]:
        """Length → score of the control prompts; empty when the task has none."""
        return self._scores(self.controls[subject])

    def by_depth(self, subject: str) -> dict[str, dict[str, Score]]:
        """Length → depth (`"0.33"`) → score; empty when samples have no depth."""
        table: dict[str, dict[str, Score]] = {}
        for length, samples in sorted(self.groups[subject].items()):
            depths: dict[float, list[Sample]] = defaultdict(list)
            for sample in samples:
                if "depth" in sample.example.details:
                    depths[sample.example.details["depth"]].append(sample)
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
        if self.task.proportion:
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

    def _scores(self, lengths: Mapping[int, list[Sample]]) -> dict[str, Score]:
        return {str(length): self.score(s) for length, s in sorted(lengths.items()) if s}

    def _differences(
        self,
        pair: Callable[[int], tuple[list[Sample], list[Sample]]],
        lengths: Iterable[int],
    ) -> dict[str, Score]:
        found: dict[str, Score] = {}
        for length in sorted(lengths):
            minuend, subtrahend = pair(length)
            clusters = {s.example.key: s.example.cluster for s in minuend}
            found[str(length)] = paired_difference(
                {s.example.key: s.score for s in minuend},
                {s.example.key: s.score for s in subtrahend},
                clusters,
                self.seed,
            )
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
        groups = [samples for lengths in self.groups.values() for samples in lengths.values()]
        if self.task.proportion:
            fewest = min(len(samples) for samples in groups)
            best, needed = wilson(fewest, fewest)["ci_low"], self._retrieval_reference()
            if best >= RETAINED_SHARE * needed:
                return []
            return [
                f"{self.name}: {fewest} samples cannot show {RETAINED_SHARE:.0%} of the reference "
                f"{needed:.2f}: {fewest} of {fewest} right has a lower bound of {best:.2f}; "
                "take more trials"
            ]
        fewest = min(len({sample.example.cluster for sample in samples}) for samples in groups)
        if fewest >= FEWEST_CLUSTERS:
            return []
        return [
            f"{self.name}: {fewest} documents; intervals from fewer than {FEWEST_CLUSTERS} are "
            "too narrow to rely on"
        ]


def compose(
    boards: Mapping[str, Scoreboard], subjects: Sequence[str], native_length: int
) -> dict[str, Any]:
    """The scored part of `results.json`: `models` (scores only), `paired`, `short_context`."""
    paired: dict[str, dict[str, Any]] = {
        name: {
            "checkpoint_minus_base": board.between("checkpoint", "base"),
            "length_minus_native": {s: board.length_minus_native(s) for s in subjects},
            **(_against_control(board) if "control" in subjects else {}),
        }
        for name, board in boards.items()
        if not board.task.proportion
    }
    at_native: dict[str, Score] = {}
    if "nll" in paired:
        difference = paired["nll"]["checkpoint_minus_base"].get(str(native_length))
        at_native = {"delta_nll": difference} if difference else {}
    return {
        "models": {subject: _scores_of(subject, boards) for subject in subjects},
        "paired": paired,
        "short_context": at_native,
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
    """Scores, effective lengths, and for tasks that have them controls and scores by depth."""
    scores: dict[str, Any] = {
        "tasks": {name: board.by_length(subject) for name, board in boards.items()},
        "effective_length": {name: b.effective_length(subject) for name, b in boards.items()},
        "controls": {
            name: table
            for name, board in boards.items()
            if (table := board.controls_by_length(subject))
        },
    }
    for name, board in boards.items():
        if depths := board.by_depth(subject):
            scores[f"{name}_by_depth"] = depths
    return scores
