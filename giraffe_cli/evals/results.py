"""From scored samples to `results.json`: scores, paired differences, effective lengths.

A `Sample` is what one subject did with one example; every measure of its task makes one
`Scoreboard` of them. Everything here is a pure function of the samples, the seed and the tasks, so
that the same samples give the same bytes.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.evals.base import AbstractTask, Example, Outcome
from giraffe_cli.evals.measures import Value, measure_name
from giraffe_cli.evals.paired import PairedScore
from giraffe_cli.evals.scoreboard import Entry, Scoreboard, difference
from giraffe_cli.evals.settling import settle
from giraffe_cli.evals.short_context import short_context
from giraffe_cli.evals.statistics import Score, clustered_bootstrap

RULES = {
    "interval_proportion": (
        "Wilson 95 % interval over samples; where several samples share a haystack, over as many "
        "samples as their spread between haystacks shows them to be worth (Korn & Graubard 1998)"
    ),
    "interval_share": (
        "as for a proportion, where the questions of one sample share it; never without width"
    ),
    "interval_mean": (
        "95 % bootstrap over documents, 10,000 resamples, percentiles expanded for few documents "
        "(Hesterberg 2015); below 8 documents not to be relied on; one document has no interval"
    ),
    "interval_kl_p99": (
        "Student's 95 % interval of its logarithm, by resampled documents or, where that is wider, "
        "by the percentiles of each document"
    ),
    "paired": (
        "mean difference over the same samples. Losses: bootstrap over documents as above; "
        "proportions and shares: score interval (Tango 1998) over as many samples as they are worth"
    ),
    "p_value": (
        "two-sided. Exact McNemar for a proportion whose samples are independent; otherwise sign "
        "flips of whole documents or haystacks: all of them where at most 13 differ, else 10,000. "
        "Not corrected for the number of comparisons"
    ),
    "control": (
        "trained on the same documents and tokens within the native window, unscaled, and scored "
        "up to that window; control_minus_base is the training text's domain, "
        "checkpoint_minus_native_control what length brings beyond it"
    ),
    "effective_length_mean": (
        "largest evaluated length L at or above the native window such that at L and every shorter "
        "one the upper 95 % bound of the paired difference NLL(L) - NLL(native) is at most 0 (the "
        "lower bound at least 0 where higher is better)"
    ),
    "effective_length_proportion": (
        "largest evaluated length L such that at L and every shorter one the lower 95 % bound is "
        "at least the threshold: the one given, else 0.9 of the base's mean at the longest length "
        "within its native window (of the checkpoint's own mean there when no base is given); null "
        "when the shortest already fails, or where the threshold is no more than chance. Lengths "
        "that were not run take no part"
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


def make_boards(
    tasks: Mapping[str, AbstractTask],
    samples: Sequence[Sample],
    native_length: int,
    seed: int,
    threshold: float | None = None,
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
                boards[name] = Scoreboard(name, measure, entries, native_length, seed, threshold)
    return boards


def compose(
    tasks: Mapping[str, AbstractTask],
    samples: Sequence[Sample],
    subjects: Sequence[str],
    native_length: int,
    seed: int,
    threshold: float | None = None,
    gates: Sequence[str] = (),
) -> dict[str, Any]:
    """The scored part of `results.json`: `models` (scores only), `measures`, `paired`,
    `short_context`, `gates`, `warnings`.

    Args:
        threshold: what the effective length of retrieval asks for; None: 0.9 of the base's score.
        gates: such as `nll@16k-nll@8k<0`, of a form that was checked before.
    """
    boards = make_boards(tasks, samples, native_length, seed, threshold)
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
    short = short_context(paired, scores, tested, native_length, seed)
    return {
        "models": models,
        "measures": {
            name: {
                "summary": board.measure.summary,
                "higher_is_better": board.measure.higher_is_better,
                "kind": board.measure.kind,
                "chance": board.measure.chance,
                "unit": board.measure.unit,
                "effective_length": board.requirement._asdict(),
            }
            for name, board in boards.items()
        },
        "paired": paired,
        "short_context": short,
        "gates": [dataclasses.asdict(gate) for gate in settle(gates, boards, short)],
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


def _contrast(first: Scoreboard, second: Scoreboard, subject: str) -> dict[str, PairedScore]:
    """Length → paired difference of two measures of one subject."""
    ours, theirs = first.groups[subject], second.groups[subject]
    found = {
        str(length): difference(ours[length], theirs[length], first.measure, first.seed)
        for length in sorted(ours)
        if length in theirs
    }
    return {length: score for length, score in found.items() if score}


def _against_control(board: Scoreboard) -> dict[str, dict[str, PairedScore]]:
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
