"""What tables are judged by: the same tokens under more and more context, and look-ups.

    native 1k, target 16k, 8 documents:   nll at 1k 2k 4k 8k 16k     8 windows each
                                          needle-nll at 1k 16k       8 prompts each

`fitness` at the target decides; it is read first, document after document. All else is read of the
settings that are still there at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config import EvalConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import AbstractTask, Example, TokenDocument
from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.samples import Texts, gather_material, prepare
from giraffe_cli.evals.subject import Subject
from giraffe_cli.progress import Reporter
from giraffe_cli.units import format_length

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
    tokenised: Sequence[TokenDocument] = (),
) -> Evidence:
    """The `documents` longest texts as samples, or those of `tokenised`.

    Args:
        needles: whether look-ups are read as well, when they do not decide.

    Raises:
        InvalidInput: no document reaches the target.
    """
    lengths = nested_lengths(native_length, target_length)
    names = [NLL, NEEDLES] if needles or fitness == NEEDLES else [NLL]
    config = EvalConfig(
        tasks=names,
        lengths=lengths,
        documents=documents,
        knobs={
            NLL: {
                "anchors": 1,
                "targets": max(1, min(MOST_TARGETS, native_length // 2)),
                "shuffled": False,
            },
            **({NEEDLES: {"samples": documents}} if NEEDLES in names else {}),
        },
    )
    subject = Subject("checkpoint", checkpoint.path, checkpoint.digest, "float32")
    material = gather_material([subject], texts, config, lengths, native_length)
    if tokenised:
        material = dataclasses.replace(material, documents=list(tokenised))
    batches, _ = prepare(config, lengths, seed, material, reporter)
    entries: dict[str, dict[int, list[Entry]]] = {}
    for batch in batches:
        kept = [e for e in batch.examples if batch.name == NLL or _at_an_end(e, lengths)]
        by_length = entries.setdefault(batch.name, {})
        for example in kept:
            by_length.setdefault(example.length, []).append((batch.name, example))
    _check_filled(entries, target_length)
    read = {example.cluster for _, example in entries[NLL][target_length]}
    sizes = {d.id: len(d.token_ids) for d in material.documents if d.id in read}
    tasks = {batch.name: batch.task for batch in batches}
    return Evidence(native_length, target_length, fitness, tasks, entries, sizes)


def _at_an_end(example: Example, lengths: Sequence[int]) -> bool:
    """Look-ups cost as much as text and say less between the native window and the target."""
    return example.length in (lengths[0], lengths[-1])


def _check_filled(entries: Mapping[str, Mapping[int, object]], target_length: int) -> None:
    lacking = [name for name, by_length in entries.items() if target_length not in by_length]
    if lacking:
        raise InvalidInput(
            f"{', '.join(lacking)}: nothing fills {format_length(target_length)} tokens",
            "give longer documents, or leave the look-ups out with --no-needles",
        )
