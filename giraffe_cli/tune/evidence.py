"""What tables are judged by: the same tokens under more and more context, and look-ups.

    native 1k, target 16k, 8 documents:   nll at 1k 2k 4k 8k 16k     8 windows each
                                          needle-nll at 1k 16k       8 prompts each

`fitness` at the target decides; it is read first, document after document. All else is read of the
settings that are still there at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask
from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.samples import Batch, Texts, gather_material, prepare
from giraffe_cli.evals.subject import Subject
from giraffe_cli.progress import Reporter, SilentReporter

NLL, NEEDLES = "nll", "needle-nll"
FITNESSES = (NLL, NEEDLES)
MOST_TARGETS = 512
"""Tokens of a document that are scored; half of the native window where that is less, so that they
have some context there too."""


@dataclass(frozen=True)
class Evidence:
    """Samples for every table alike."""

    native_length: int
    target_length: int
    fitness: str
    """The task that decides."""
    tasks: Mapping[str, AbstractTask]
    entries: Mapping[str, Mapping[int, Sequence[Entry]]]
    """Task → length → a sample a document, or a prompt."""
    documents: Mapping[str, int]
    """Id → tokens."""

    @property
    def count(self) -> int:
        """Samples of the fitness."""
        return len(self.entries[self.fitness][self.target_length])

    def deciding(self, first: int | None = None) -> list[Entry]:
        """The `first` samples, or all, of the fitness at the target."""
        return list(self.entries[self.fitness][self.target_length][:first])

    def all(self) -> list[Entry]:
        """Every sample of every task and length."""
        lengths = (by_length.values() for by_length in self.entries.values())
        return [entry for group in lengths for entries in group for entry in entries]

    def within_native(self) -> list[Entry]:
        """Every sample that the unscaled base reads as well."""
        return [entry for entry in self.all() if entry[1].length <= self.native_length]

    def clusters(self) -> dict[str, str]:
        """Pair → the independent unit it belongs to."""
        return {example.pair: example.cluster for _, example in self.all()}


def nested_lengths(native_length: int, target_length: int) -> list[int]:
    """The native window, its doublings, and the target: 1k, 2k, 3k for 1k and 3k."""
    lengths = [native_length]
    while lengths[-1] * 2 < target_length:
        lengths.append(lengths[-1] * 2)
    return [*lengths, target_length]


def gather_evidence(
    checkpoint: Checkpoint,
    native_length: int,
    target_length: int,
    texts: Texts,
    reporter: Reporter,
    *,
    documents: int,
    seed: int = 0,
    fitness: str = NLL,
    needles: bool = True,
) -> Evidence:
    """The `documents` longest texts as samples.

    Args:
        needles: whether look-ups are read as well, when they do not decide; left out with a warning
            where they do not fit.

    Raises:
        InvalidInput: no document reaches the target, or look-ups decide and do not fit.
    """
    lengths = nested_lengths(native_length, target_length)
    names = [NLL, NEEDLES] if needles or fitness == NEEDLES else [NLL]
    config = _samples(names, lengths, documents, native_length)
    subject = Subject("checkpoint", checkpoint.path, checkpoint.digest, "float32")
    material = gather_material([subject], texts, config, lengths, native_length)
    batches = []
    for name in names:
        try:
            only = _samples([name], lengths, documents, native_length)
            batches += prepare(only, lengths, seed, material, SilentReporter())[0]
        except InvalidInput as problem:
            if name in (NLL, fitness):
                raise
            reporter.warn(f"look-ups are left out: {problem.message}")
    entries = {batch.name: _by_length(batch, lengths) for batch in batches}
    if NEEDLES in entries and target_length not in entries[NEEDLES]:
        del entries[NEEDLES]
    read = {example.cluster for _, example in entries[NLL][target_length]}
    sizes = {d.id: len(d.token_ids) for d in material.documents if d.id in read}
    tasks = {batch.name: batch.task for batch in batches}
    return Evidence(native_length, target_length, fitness, tasks, entries, sizes)


def _samples(
    names: list[str], lengths: list[int], documents: int, native_length: int
) -> EvalConfig:
    """One block of targets a document, and as many prompts of look-ups."""
    targets = max(1, min(MOST_TARGETS, native_length // 2))
    knobs: dict[str, dict[str, Any]] = {
        NLL: {"anchors": 1, "targets": targets, "shuffled": False},
        NEEDLES: {"samples": documents},
    }
    own = {name: knobs[name] for name in names}
    return EvalConfig(tasks=names, lengths=lengths, documents=documents, knobs=own)


def _by_length(batch: Batch, lengths: Sequence[int]) -> dict[int, list[Entry]]:
    """Look-ups at both ends only: they cost as much as text and say less in between."""
    found: dict[int, list[Entry]] = {}
    for example in batch.examples:
        if batch.name == NLL or example.length in (lengths[0], lengths[-1]):
            found.setdefault(example.length, []).append((batch.name, example))
    return found
