"""One loaded model under many tables: only the table is swapped, and nothing is read twice.

A table on a model is a subject of its own, with a digest over the checkpoint and the table; so its
outcomes lie in the same kind of cache as an evaluation's, a stopped comparison resumes, and a table
that another comparison has read costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.evals.base import AbstractTask
from giraffe_cli.evals.cache import OutcomeCache, sample_key
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.open_subject import OpenSubject, open_subject
from giraffe_cli.evals.order import Entry, reading_plan
from giraffe_cli.evals.pace import Pace, measured_pace
from giraffe_cli.evals.reading import chunk_here, missing_of, take_all
from giraffe_cli.evals.subject import Subject
from giraffe_cli.model.out_of_memory import hand_back
from giraffe_cli.progress import Bar
from giraffe_cli.rope.base import Head, RopeTable, make_table
from giraffe_cli.rope.install import swap_table
from giraffe_cli.rundir import digest_value

ROW = 2048
"""Tokens of short prompts that are read in a row."""


class TableReader:
    """`checkpoint` in `dtype`, loaded when the first sample is not in `cache`."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, cache: Path) -> None:
        self.checkpoint, self.dtype, self.cache = checkpoint, dtype, cache
        self.read_tokens = 0
        """Tokens that went through the model."""
        self._opened: OpenSubject | None = None
        self._pace: Pace | None = None
        self._slower = 1.0

    def subject(self, table: RopeTable) -> Subject:
        """What the cache calls the checkpoint under `table`."""
        of_table = {"rope": table.rope_parameters, "target_length": table.target_length}
        digest = digest_value({"checkpoint": self.checkpoint.digest, **of_table})
        return Subject("checkpoint", self.checkpoint.path, digest, self.dtype)

    def missing(self, table: RopeTable, entries: Sequence[Entry]) -> list[Entry]:
        """The entries that must be read still."""
        return missing_of(self.subject(table), entries, self.cache)

    def seconds(self, table: RopeTable, entries: Sequence[Entry]) -> float:
        """How long reading what is missing will take: by timed pieces, and by how far off these
        were in what has been read since."""
        plan = reading_plan(self.missing(table, entries), ROW, chunk_here())
        if not plan:
            return 0.0
        if self._pace is None:
            longest = max(len(example.token_ids) for _, example in entries)
            self._pace = measured_pace(self._model(), longest)
        return self._slower * self._pace.seconds(plan, chunk_here())

    def read(self, table: RopeTable, entries: Sequence[Entry], bar: Bar) -> None:
        """Store what is missing.

        Raises:
            GiraffeError: the model gave a loss that is no number.
        """
        plan = reading_plan(self.missing(table, entries), ROW, chunk_here())
        if not plan:
            return
        predicted, model = self.seconds(table, entries), self._model()
        swap_table(model.model, table)
        # anew: the keys that are kept were turned by another table
        opened = OpenSubject(model.model, model.tokenizer, model.chunk)
        started = time.monotonic()
        take_all(self.subject(table), opened, plan, self.cache, bar)
        self._slower *= (time.monotonic() - started) / max(predicted, 1e-9)
        self.read_tokens += opened.fed_tokens

    def values(
        self, table: RopeTable, task: AbstractTask, entries: Sequence[Entry]
    ) -> Mapping[str, Value]:
        """The main measure of those of `entries` that have been read, by pair and length."""
        subject = self.subject(table)
        known = OutcomeCache(self.cache, subject, task.name)
        found = {}
        for name, example in entries:
            outcome = known.get(sample_key(subject, name, example))
            if outcome is not None:
                found[example.pair] = task.scores(example, outcome, {})[""]
        return found

    def close(self) -> None:
        """Give the model's memory back; the next reading loads it again."""
        self._opened = None
        hand_back()

    def _model(self) -> OpenSubject:
        if self._opened is None:
            path, digest = self.checkpoint.path, self.checkpoint.digest
            self._opened = open_subject(Subject("checkpoint", path, digest, self.dtype))
        return self._opened


def table_as_it_is(checkpoint: Checkpoint, head: Head) -> RopeTable:
    """The table that `checkpoint` has in force on short text, whatever `head` starts from: of a
    scaled base that is extended as if it were not, its weights know the scaled one alone. The
    unscaled one of `dynamic`, which leaves short text alone, and of a type that is not known."""
    scaled = (checkpoint.existing_rope or {}).get("rope_type") not in (None, "dynamic")
    if scaled and head.base_table is None and checkpoint.base_table is not None:
        head = replace(
            head,
            base_table=checkpoint.base_table,
            base_attention_factor=checkpoint.base_attention_factor,
        )
    return make_table("none", {}, head)
