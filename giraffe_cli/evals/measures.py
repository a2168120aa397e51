"""The measures of a task: whether more is better, what chance gets, how scores are averaged.

task nll      measures  nll, nll.shuffled, nll.bits-per-byte
task passkey  measures  passkey (generated), passkey.ranked, passkey.exact
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["proportion", "share", "mean"]
MOST_DEPTHS = 101
"""Places that are asked for: scores by depth, and keys of samples, tell them by two digits."""


@dataclass(frozen=True)
class Measure:
    """One of the numbers a task gives."""

    summary: str
    higher_is_better: bool
    kind: Kind
    """proportion: 0/1 scores, Wilson interval. share: 0..1 with parts (3 of 4 values found), and
    mean: any number, such as nats; both by bootstrap over clusters."""
    chance: float = 0.0
    """What a model that knows nothing gets."""
    unit: str = ""
    """`nats`, `bits`; empty for shares."""
    against_base: bool = False
    """It holds a model against the base, so that the base itself has no score."""
    reaches: bool = True
    """Whether an effective length can be told by it; false for what tells nothing of the model, or
    is of texts as short as they are."""

    @property
    def bounded(self) -> bool:
        """Whether scores lie in 0..1."""
        return self.kind != "mean"

    def questions(self, answers: int) -> int:
        """That a sample with so many answers asks."""
        return max(1, answers) if self.kind == "share" else 1

    @property
    def has_threshold(self) -> bool:
        """Whether its effective length asks for a share of right answers; else for no loss."""
        return self.bounded and self.higher_is_better and self.reaches


RANKED_AGAINST = 9
"""Wrong answers a true one is ranked against; chance is one in ten."""

RETRIEVAL = {
    "": Measure("the answer generated greedily, by the original protocol", True, "proportion"),
    "ranked": Measure(
        "the true answer more probable than nine others of as many tokens", True, "proportion", 0.1
    ),
    "exact": Measure("every token of the true answer is the most probable", True, "proportion"),
}
"""The measures of a task that asks for one thing out of the context."""
RETRIEVAL_OF_SEVERAL = {
    "": Measure("share of the answers in the greedy generation", True, "share"),
    "ranked": Measure(
        "share of the answers more probable than nine others of as many tokens", True, "share", 0.1
    ),
    "exact": Measure("every token of the list of answers is the most probable", True, "proportion"),
}
"""The measures of a task that asks for several things."""


class Value(NamedTuple):
    """What one sample says of a measure; a sample of twice the `weight` counts twice."""

    value: float
    weight: float = 1.0


def measure_name(task: str, measure: str) -> str:
    """`passkey`, `passkey.ranked`."""
    return f"{task}.{measure}" if measure else task
