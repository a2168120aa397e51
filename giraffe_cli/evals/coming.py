"""What is about to be evaluated: the measures and lengths that each model will have scores of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.measures import measure_name
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.subject import Subject


class Coming(NamedTuple):
    """What is about to be evaluated."""

    batches: Sequence[Batch]
    subjects: Mapping[str, Subject]
    native_length: int

    def measured(self) -> dict[str, tuple[Batch, str]]:
        """Measure → the batch that gives it, and what its task calls it."""
        return {
            measure_name(batch.name, key): (batch, key)
            for batch in self.batches
            for key in batch.task.measures
        }

    def lengths(self, measure: str, subject: str) -> list[int]:
        """The lengths at which `subject` gets a score by `measure`, rising."""
        return sorted({example.length for example in self.examples(measure, subject)})

    def examples(self, measure: str, subject: str) -> list[Example]:
        """Those of `measure` that `subject` is scored on; empty where there is no such measure."""
        if measure not in self.measured() or subject not in self.subjects:
            return []
        batch, key = self.measured()[measure]
        if batch.task.measures[key].against_base and (
            subject == "base" or "base" not in self.subjects
        ):
            return []
        takes = self.subjects[subject].takes
        found = (e for e in batch.examples if takes(e) and not e.for_reference)
        return [e for e in found if key in batch.task.bears_on(e)]

    def within_native(self, measure: str, subject: str) -> list[int]:
        """Those of `lengths` within the native window."""
        return [n for n in self.lengths(measure, subject) if n <= self.native_length]
