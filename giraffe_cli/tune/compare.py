"""The bake-off: tables on one loaded model, the hopeless ones dropped early, within a budget.

    22 settings on 1 document → 11 on 2 → 6 on 4 → 3 on 8 → all lengths and look-ups of those 3

Successive halving (Jamieson & Talwalkar 2016) over documents: each round doubles the documents and
keeps the better half. A round that the budget does not pay for takes as many settings as it pays
for, the likeliest first; what was left out is said. Every sample is cached, so that the same
command goes on where it stopped, and with more minutes further.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.evals.order import Entry
from giraffe_cli.evals.software import versions
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import Head
from giraffe_cli.rundir import write_json
from giraffe_cli.tune.evidence import Evidence
from giraffe_cli.tune.reading import TableReader, table_as_it_is
from giraffe_cli.tune.settings import Setting
from giraffe_cli.tune.standing import (
    describe,
    losses,
    mean_of,
    recommend,
    standing_of,
    warnings_of,
)
from giraffe_cli.units import counted

SCHEMA_VERSION = 1
COMPARISON = "comparison.json"
FINALISTS = 3
"""Settings that are read on everything, where as many are affordable."""


ROUND_SHARE = 2 / 3
"""Of the time left, for each round: the first looks at many, some is kept to look closer."""


ROUNDING = 1e-6
"""Seconds: must not refuse the two that were found affordable."""


@dataclass(frozen=True)
class Budget:
    """Wall-clock seconds from now on."""

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic

    def started(self) -> Callable[[], float]:
        """A function that tells how many seconds are left."""
        deadline = self.clock() + self.seconds
        return lambda: deadline - self.clock()


def compare(
    reader: TableReader,
    found: Sequence[Setting],
    head: Head,
    evidence: Evidence,
    reporter: Reporter,
    *,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
    halves: bool = True,
    seed: int = 0,
    out: Path | None = None,
    warned: Sequence[str] = (),
) -> dict[str, Any]:
    """Read `found`, likeliest first; the content of `comparison.json`, written to `out` if given.

    Args:
        halves: False reads every setting on everything, as far as the budget goes.
        warned: what a reader of the result must know beforehand.

    Returns:
        `settings` best first, `recommendation` (None where the budget compared no two), `warnings`.

    Raises:
        GiraffeError: the model gave a loss that is no number.
    """
    begun, left, read_before = time.monotonic(), budget.started(), reader.read_tokens
    bake_off = BakeOff(reader, evidence, left, reporter)
    kept = bake_off.halve(found, halves)
    reference = Setting("none", "none", {}, table_as_it_is(reader.checkpoint, head))
    if len(kept) > 1 or len(found) == 1:
        bake_off.finish(kept[:FINALISTS] if halves else kept, reference)
    result = {
        **conclude(found, reference, reader, evidence, seed),
        "seconds": round(time.monotonic() - begun, 1),
        "read_tokens": reader.read_tokens - read_before,
        "budget_seconds": None if math.isinf(budget.seconds) else budget.seconds,
    }
    result["warnings"] = [*warned, *bake_off.warnings, *result["warnings"]]
    for warning in result["warnings"]:
        reporter.warn(warning)
    if out is not None:
        write_json(out / COMPARISON, result)
    return result


class BakeOff:
    """The rounds, the clock, and what had to be left out."""

    def __init__(
        self,
        reader: TableReader,
        evidence: Evidence,
        left: Callable[[], float],
        reporter: Reporter,
    ) -> None:
        self.reader, self.evidence, self.left, self.reporter = reader, evidence, left, reporter
        self.warnings: list[str] = []

    def halve(self, found: Sequence[Setting], halves: bool) -> list[Setting]:
        """Those left after the last round that the time was enough for, best first; none when it
        was not enough for two on one sample."""
        kept, counts = list(found), rounds(self.evidence.count, halves)
        for count, earlier, later in zip(counts, [0, *counts], [*counts[1:], 0], strict=False):
            entries = self.evidence.deciding(count)
            two = sum(self.reader.seconds(setting.table, entries) for setting in kept[:2])
            if two > self.left():
                self._left_out(f"no two settings were read on {counted(count, 'sample')}", [])
                return kept if earlier else []
            share = self.left() * ROUND_SHARE
            if later and self.left() - share < two * (later - count) / (count - earlier):
                share = self.left()  # the rest would not pay for two in the next round
            what = f"{count} of {self.evidence.count} samples"
            read = self.read(kept, entries, what, max(two, share))
            self._left_out(f"not read on {counted(count, 'sample')}", kept[len(read) :])
            kept = best_first(read, self.reader, self.evidence, count)
            if count < self.evidence.count:
                kept = kept[: max(FINALISTS, math.ceil(len(kept) / 2))]
        return kept

    def finish(self, kept: Sequence[Setting], reference: Setting) -> None:
        """What it costs within the native window, then all lengths and look-ups."""
        for entries, group, what in (
            (self.evidence.within_native(), [reference, *kept], "the native window"),
            (self.evidence.all(), kept, "all lengths and look-ups"),
        ):
            read = self.read(group, entries, what, self.left())
            self._left_out(f"not read on {what}", group[len(read) :])

    def read(
        self, kept: Sequence[Setting], entries: Sequence[Entry], what: str, seconds: float
    ) -> list[Setting]:
        """As many of `kept`, from the first, as `seconds` are enough for, read on `entries`.

        The time that the next one takes is predicted anew after each, by what the others took.
        """
        ends, done = self.left() - seconds if math.isfinite(seconds) else 0.0, list[Setting]()
        missing = [self.reader.missing(setting.table, entries) for setting in kept]
        costs = [self.reader.seconds(setting.table, entries) for setting in kept]
        expected = [
            sum(len(example.token_ids) for _, example in group)
            for group, spent in zip(missing, itertools.accumulate(costs), strict=True)
            if spent <= seconds + ROUNDING
        ]
        if not sum(expected):
            return list(kept[: len(expected)])
        with self.reporter.bar(
            f"reading {len(expected)} tables, {what}", sum(expected), "tokens"
        ) as bar:
            for setting, group in zip(kept, missing, strict=True):
                if self.reader.seconds(setting.table, group) > self.left() - ends + ROUNDING:
                    break
                self.reader.read(setting.table, group, bar)
                done.append(setting)
        return done

    def _left_out(self, what: str, left_out: Sequence[Setting]) -> None:
        names = ", ".join(setting.label for setting in left_out)
        if names or what.startswith("no two"):
            self.warnings.append(f"for want of time {what}{': ' if names else ''}{names}")


def rounds(count: int, halves: bool) -> list[int]:
    """Samples read by the end of each round: 1, 2, 4, 8 of 8."""
    if not halves:
        return [count]
    return [*(2**k for k in range(count.bit_length()) if 2**k < count), count]


def best_first(
    kept: Sequence[Setting], reader: TableReader, evidence: Evidence, count: int
) -> list[Setting]:
    """By their loss on the first `count` samples alone: of an earlier comparison some may have been
    read on more, which says nothing for them."""
    entries = evidence.deciding(count)

    def loss(setting: Setting) -> float:
        found = losses(setting.table, reader, evidence, entries)
        return mean_of(found[evidence.fitness][evidence.target_length])

    return sorted(kept, key=loss)


def conclude(
    found: Sequence[Setting],
    reference: Setting,
    reader: TableReader,
    evidence: Evidence,
    seed: int,
) -> dict[str, Any]:
    """What has been read of `found`, whenever that was."""
    standings = [standing_of(setting, reader, evidence) for setting in found]
    read = [standing for standing in standings if standing.deciding(evidence)]
    base = standing_of(reference, reader, evidence)
    rows = describe(read, base, evidence, seed) if read else []
    chosen = recommend(rows, evidence) if len(rows) > 1 or len(found) == 1 and rows else None
    checkpoint = reader.checkpoint
    return {
        "schema_version": SCHEMA_VERSION,
        "model": checkpoint.source,
        "sha256": checkpoint.digest,
        "dtype": reader.dtype,
        "seed": seed,
        "native_length": evidence.native_length,
        "target_length": evidence.target_length,
        "fitness": evidence.fitness,
        "documents": dict(evidence.documents),
        "settings": rows,
        "not_read": [s.setting.label for s in standings if not s.deciding(evidence)],
        "recommendation": chosen,
        "warnings": warnings_of(rows, evidence) if rows else [],
        "versions": versions(),
    }
