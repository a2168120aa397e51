"""Reading what the cache lacks: by this process, or shared out to several.

Whatever the process, each sample is stored as soon as it is done, in a cache file of the process's
own; all read all files. Shares are cut where prompts begin anew (`order.split_plan`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from giraffe_cli.errors import Interrupted
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.cache import OutcomeCache, sample_key
from giraffe_cli.evals.open_subject import OpenSubject, open_subject
from giraffe_cli.evals.order import Entry, Step, split_plan
from giraffe_cli.evals.pace import measured_pace
from giraffe_cli.evals.parts import Part
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.software import reader_here
from giraffe_cli.evals.subject import Subject
from giraffe_cli.model.reading import CHUNKS
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.train.parallel import visible_gpus
from giraffe_cli.units import format_length, format_seconds

if TYPE_CHECKING:
    import torch


def entries_of(subject: Subject, batches: Sequence[Batch], is_reference: bool) -> list[Entry]:
    """All that `subject` is scored on."""
    return [
        (batch.name, example)
        for batch in batches
        for example in batch.examples
        if subject.takes(example) and (is_reference or not example.for_reference)
    ]


def caches_of(
    subject: Subject, entries: Sequence[Entry], cache: Path, process: int = 0
) -> dict[str, OutcomeCache]:
    """The outcomes of each task of `entries`, every file read once."""
    tasks = {task for task, _ in entries}
    return {task: OutcomeCache(cache, subject, task, process) for task in tasks}


def missing_of(subject: Subject, entries: Sequence[Entry], cache: Path) -> list[Entry]:
    """The entries without an outcome, once each: a prompt may stand under several lengths."""
    caches = caches_of(subject, entries, cache)
    keyed = {sample_key(subject, task, example): (task, example) for task, example in entries}
    return [(task, e) for key, (task, e) in keyed.items() if caches[task].get(key) is None]


def read_part(
    subject: Subject,
    plan: Sequence[Step],
    cache: Path,
    reporter: Reporter,
    part: Part = Part(),  # noqa: B008  (frozen)
    device: torch.device | None = None,
    stop: Path | None = None,
) -> None:
    """This process's part of `plan`, on a model loaded for it; raises as `read_plan` does."""
    share = plan
    if part.processes > 1:
        share = split_plan(plan, part.processes, chunk_here())[part.process]
    if share:
        read_plan(subject, open_subject(subject, device), share, cache, reporter, part, stop)


def chunk_here() -> int:
    """Tokens that are fed at a time on this machine."""
    return CHUNKS["cuda" if visible_gpus() else "cpu"]


def read_plan(
    subject: Subject,
    opened: OpenSubject,
    plan: Sequence[Step],
    cache: Path,
    reporter: Reporter,
    part: Part = Part(),  # noqa: B008  (frozen)
    stop: Path | None = None,
) -> None:
    """Every step of `plan`, its outcomes stored one by one; the time it will take is said first.

    Raises:
        Interrupted: the file `stop` has appeared.
    """
    tokens = sum(step.tokens for step in plan)
    longest = max(len(prompt.token_ids) for step in plan for prompt in step.prompts)
    seconds = measured_pace(opened, longest).seconds(plan, opened.chunk)
    whose = f" by the first of {part.processes} processes" if part.processes > 1 else ""
    reporter.info(
        f"{subject.name}: {tokens:,} tokens to read{whose}, about {format_seconds(seconds)}"
    )
    with reporter.bar(f"evaluating {subject.name}", tokens, "tokens") as bar:
        take_all(subject, opened, plan, cache, bar, part.process, stop)


def take_all(
    subject: Subject,
    opened: OpenSubject,
    plan: Sequence[Step],
    cache: Path,
    bar: Bar,
    process: int = 0,
    stop: Path | None = None,
) -> None:
    """Read and store `plan`, step by step; raises as `read_plan` does."""
    entries = [entry for step in plan for prompt in step.prompts for entry in prompt.entries]
    caches, read_by = caches_of(subject, entries, cache, process), reader_here(opened.chunk)
    for step in plan:
        if stop and stop.exists():
            raise Interrupted("the evaluation was stopped", "the same command resumes it")
        for task, example, outcome in _read(step, opened):
            caches[task].put(
                sample_key(subject, task, example), dataclasses.replace(outcome, read_by=read_by)
            )
        bar.advance(step.tokens, length=format_length(step.prompts[-1].entries[0][1].length))


def _read(step: Step, opened: OpenSubject) -> Iterator[tuple[str, Example, Outcome]]:
    for prompt, outcomes in zip(step.prompts, opened.outcomes(step.prompts), strict=True):
        for (task, example), outcome in zip(prompt.entries, outcomes, strict=True):
            yield task, example, outcome
