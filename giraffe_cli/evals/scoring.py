"""What was read of every example, as scored samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from giraffe_cli.evals.base import Outcome
from giraffe_cli.evals.cache import sample_key
from giraffe_cli.evals.divergence import add_divergences
from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.reading import caches_of
from giraffe_cli.evals.results import Sample
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.subject import EVALUATOR, Subject, reference_subject
from giraffe_cli.progress import Reporter

Outcomes = dict[tuple[str, int, str], Outcome]
"""By task, length and key."""


def scored_samples(
    subjects: list[Subject],
    batches: list[Batch],
    entries: Mapping[str, list[Entry]],
    cache: Path,
    reporter: Reporter,
) -> list[Sample]:
    """What every subject but the evaluator did with its samples, from the outcomes in `cache`."""
    outcomes = {s.name: known_outcomes(s, entries[s.name], cache) for s in subjects}
    add_divergences(subjects, batches, outcomes, cache, reporter)
    of_reference = outcomes[reference_subject(subjects).name]
    return [
        sample
        for subject in subjects
        if subject.name != EVALUATOR
        for sample in score(subject, batches, outcomes[subject.name], of_reference)
    ]


def known_outcomes(subject: Subject, entries: Sequence[Entry], cache: Path) -> Outcomes:
    """Of every entry that has been read."""
    caches = caches_of(subject, entries, cache)
    return {
        (task, example.length, example.key): outcome
        for task, example in entries
        if (outcome := caches[task].get(sample_key(subject, task, example)))
    }


def score(
    subject: Subject, batches: list[Batch], outcomes: Outcomes, reference: Outcomes
) -> list[Sample]:
    """The samples of `subject`, in the order of the examples."""
    samples = []
    for batch in batches:
        chosen: dict[int, dict[str, Outcome]] = defaultdict(dict)
        for (task, length, key), outcome in reference.items():
            if task == batch.name:
                chosen[length][key] = outcome
        for example in batch.examples:
            found = outcomes.get((batch.name, example.length, example.key))
            if found is None or example.for_reference:
                continue
            scores = batch.task.scores(example, found, chosen[example.length])
            curve = batch.task.curve(example, found)
            samples.append(Sample(subject.name, batch.name, example, found, scores, curve))
    return samples
