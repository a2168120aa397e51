"""One measure's samples of all subjects: scores by length, paired differences, effective length.

by_length("checkpoint")            {"8192": score, "16384": score}
between("checkpoint", "base")      the same samples read by both, subtracted one by one
effective_length("checkpoint")     16384: the last length that passes, every shorter one too
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.paired import PairedScore, paired_difference
from giraffe_cli.evals.statistics import (
    FEWEST_CLUSTERS,
    Score,
    clustered_bootstrap,
    clustered_share,
)
from giraffe_cli.units import counted

RETAINED_SHARE = 0.9
"""A retrieval score counts as kept at this share of the reference score."""


class Entry(NamedTuple):
    """One sample's value of one measure."""

    subject: str
    example: Example
    value: Value


class Requirement(NamedTuple):
    """What a score must reach to count towards the effective length."""

    threshold: float | None
    """For the lower bound; None: nothing can be shown, or a difference is tested."""
    rule: str


class Scoreboard:
    """The samples of one measure, scored and compared; lengths ascend."""

    def __init__(
        self,
        name: str,
        measure: Measure,
        entries: Iterable[Entry],
        native_length: int,
        seed: int,
        threshold: float | None = None,
    ) -> None:
        self.name, self.measure = name, measure
        self.native_length, self.seed, self.given = native_length, seed, threshold
        self.groups: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        self.controls: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            is_control = bool(entry.example.details.get("control"))
            target = self.controls if is_control else self.groups
            target[entry.subject][entry.example.length].append(entry)

    def score(self, entries: Sequence[Entry]) -> Score:
        """Mean and interval by the measure's kind."""
        return self._score(entries, [entry.value.value for entry in entries])

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

    def between(self, subject: str, other: str) -> dict[str, PairedScore]:
        """Length → paired difference `subject` - `other`, where both were scored."""
        theirs = self.groups[other]
        return self._differences(
            {n: (ours, theirs.get(n, [])) for n, ours in self.groups[subject].items()}
        )

    def length_minus_native(self, subject: str) -> dict[str, PairedScore]:
        """Length → paired difference to the same samples at the native length."""
        return self.minus_native(subject, subject)

    def minus_native(self, subject: str, other: str) -> dict[str, PairedScore]:
        """Length → paired difference to what `other` scores on the same targets at the native
        length; empty where it was not scored there."""
        native = self.groups[other].get(self.native_length, [])
        return self._differences({n: (ours, native) for n, ours in self.groups[subject].items()})

    def difference(self, first: Sequence[Entry], second: Sequence[Entry]) -> PairedScore | None:
        """Mean of `first` - `second` over what they share; None where they share nothing."""
        return difference(first, second, self.measure, self.seed)

    @cached_property
    def requirement(self) -> Requirement:
        """What the effective length of this measure asks for; see `RULES`."""
        if not self.measure.reaches:
            return Requirement(None, "none: it tells nothing of how the model reads long texts")
        if not self.measure.has_threshold:
            side = "lower" if self.measure.higher_is_better else "upper"
            least = "at least" if self.measure.higher_is_better else "at most"
            return Requirement(
                None,
                f"{side} 95 % bound of the paired difference to {self.native_length} tokens "
                f"{least} 0",
            )
        threshold, source = self._threshold()
        if threshold is not None and threshold <= self.measure.chance:
            return Requirement(None, f"{source} is no more than chance, {self.measure.chance:g}")
        bound = "" if threshold is None else f"lower 95 % bound at least {threshold:.3f}: "
        return Requirement(threshold, bound + source)

    def effective_length(self, subject: str) -> int | None:
        """The last of the leading lengths that pass the bar; None when there is none."""
        if not self.measure.reaches:
            return None
        if self.measure.has_threshold:
            least, scores = self.requirement.threshold, self.by_length(subject)
            passing = {n: least is not None and s["ci_low"] >= least for n, s in scores.items()}
        else:
            passing = {
                length: self._no_worse(found, int(length))
                for length, found in self.length_minus_native(subject).items()
                if int(length) >= self.native_length
            }
        longest = None
        for length, passes in passing.items():
            if not passes:
                break
            longest = int(length)
        return longest

    def warnings(self) -> list[str]:
        """What a reader must know before trusting an interval."""
        groups = [entries for lengths in self.groups.values() for entries in lengths.values()]
        if not groups:
            return []
        if self.measure.bounded:
            return self._out_of_reach(groups)
        fewest = min(len({entry.example.cluster for entry in entries}) for entries in groups)
        if fewest >= FEWEST_CLUSTERS:
            return []
        return [
            f"{self.name}: {counted(fewest, 'document')}; intervals from fewer than "
            f"{FEWEST_CLUSTERS} are wide, and hold the truth where documents are alike"
        ]

    def _out_of_reach(self, groups: Sequence[Sequence[Entry]]) -> list[str]:
        """So few samples that all of them right would not pass the bar."""
        bests = [(self._score(entries, [1.0] * len(entries)), len(entries)) for entries in groups]
        best, n = min((score["ci_low"], n) for score, n in bests)
        least, rule = self.requirement
        if least is None or best >= least:
            return []
        return [
            f"{self.name}: {counted(n, 'sample')} cannot show {least:.2f} ({rule}): "
            f"{n} of {n} right has a lower bound of {best:.2f}; take more samples"
        ]

    def _threshold(self) -> tuple[float | None, str]:
        """What the lower bound is held against, and where it comes from."""
        if self.given is not None:
            return self.given, "the threshold that was given"
        subject = "base" if self.groups["base"] else "checkpoint"
        within = [length for length in self.groups[subject] if length <= self.native_length]
        if not within:
            return None, f"nothing was scored within the native window of {self.native_length}"
        mean = self.score(self.groups[subject][max(within)])["mean"]
        source = f"{RETAINED_SHARE} of the {subject}'s mean {mean:.3f} at {max(within)} tokens"
        return RETAINED_SHARE * mean, source

    def _no_worse(self, found: PairedScore, length: int) -> bool:
        """Not worse than at the native length; one document shows that of no other length."""
        if found["clusters"] < 2 and length != self.native_length:
            return False
        return found["ci_low"] >= 0 if self.measure.higher_is_better else found["ci_high"] <= 0

    def _score(self, entries: Sequence[Entry], values: Sequence[float]) -> Score:
        clusters = [entry.example.cluster for entry in entries]
        weights = [entry.value.weight for entry in entries]
        if not self.measure.bounded:
            score = clustered_bootstrap(values, clusters, self.seed, weights=weights)
            # few documents have an interval that is symmetric, and no loss is negative
            low = score["ci_low"] if min(values) < 0 else max(0.0, score["ci_low"])
            return {**score, "ci_low": low}
        parts = sum(_parts(entry, self.measure) for entry in entries)
        return clustered_share(values, clusters, weights, parts)

    def _scores(self, lengths: Mapping[int, list[Entry]]) -> dict[str, Score]:
        return {str(length): self.score(s) for length, s in sorted(lengths.items()) if s}

    def _differences(
        self, sides: Mapping[int, tuple[list[Entry], list[Entry]]]
    ) -> dict[str, PairedScore]:
        found = {length: self.difference(*pair) for length, pair in sorted(sides.items())}
        return {str(length): score for length, score in found.items() if score}


def difference(
    first: Sequence[Entry], second: Sequence[Entry], measure: Measure, seed: int
) -> PairedScore | None:
    """Mean paired difference of two groups of entries, with the interval of the first's measure;
    None where they share no pair."""
    minuend = {entry.example.pair: entry.value for entry in first}
    subtrahend = {entry.example.pair: entry.value for entry in second}
    if not minuend.keys() & subtrahend.keys():
        return None
    return paired_difference(
        minuend,
        subtrahend,
        {entry.example.pair: entry.example.cluster for entry in first},
        seed,
        measure.kind,
        {entry.example.pair: _parts(entry, measure) for entry in first},
    )


def _parts(entry: Entry, measure: Measure) -> int:
    return measure.questions(len(entry.example.answers))
