"""The tables that a search has read, and those it reads next.

    2 seeds (YaRN, NTK) · 10 places of the critical pair · generations of 8

Proposals depend on the seed and on losses alone, so that the same search reads the same tables, and
a stopped one replays itself out of the reader's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from giraffe_cli.evals.order import Entry
from giraffe_cli.rope.base import Head
from giraffe_cli.tune.evidence import Evidence
from giraffe_cli.tune.genome import Genome, critical_pairs, crossed, mutated, seed_of, unseen
from giraffe_cli.tune.reading import TableReader
from giraffe_cli.tune.standing import mean_of

SEEDS = ("yarn", "ntk")
PARENTS = 8
CHILDREN = 8
MUTATIONS = 5
"""Of the children of a generation; the others are crossings."""
TAIL_SHARE = 1 / 3
"""Of the generations that move pairs from the critical one on only."""
HOPELESS = 0.05
"""Nats by which a child may be behind the worst parent half-way through the documents."""


@dataclass(frozen=True)
class Trial:
    """A genome and its mean loss; `stopped` where it was not read to the end."""

    number: int
    genome: Genome
    loss: float
    stopped: bool = False


class Hunt:
    """The tables read so far and what is proposed next."""

    def __init__(
        self,
        reader: TableReader,
        head: Head,
        evidence: Evidence,
        entries: Sequence[Entry],
        seed: int,
    ) -> None:
        self.reader, self.head, self.evidence, self.entries = reader, head, evidence, entries
        self.generator = np.random.default_rng(seed)
        self.trials: list[Trial] = []

    @property
    def best(self) -> Trial:
        """The trial of the lowest loss among those that were read whole."""
        return min(self.trials, key=lambda trial: (trial.stopped, trial.loss))

    @property
    def best_seed(self) -> Trial:
        """The best of the tables that the search began with."""
        seeds = [trial for trial in self.trials if trial.genome.origin in SEEDS]
        return min(seeds, key=lambda trial: trial.loss)

    def run(self, evaluations: int) -> Iterator[Trial]:
        """One trial after the other."""
        for genome in [*(seed_of(name, self.head) for name in SEEDS), *critical_pairs(self.head)]:
            if len(self.trials) < evaluations and self._is_new(genome):
                yield self._try(genome, halfway=genome.origin not in SEEDS)
        evolved_from = len(self.trials)
        while len(self.trials) < evaluations:
            done = (len(self.trials) - evolved_from) / max(1, evaluations - evolved_from)
            first = self._critical_pair() if done < TAIL_SHARE else 0
            for genome in self._generation(first)[: evaluations - len(self.trials)]:
                yield self._try(genome, halfway=True)

    def _generation(self, first_pair: int) -> list[Genome]:
        """`CHILDREN` genomes that nobody has read, fewer where no new ones are found."""
        parents = self._parents()
        children: list[Genome] = []
        for attempt in range(20 * CHILDREN):
            if len(children) == CHILDREN:
                break
            one, other = (parents[self._pick(len(parents))] for _ in range(2))
            if attempt % CHILDREN < MUTATIONS or one is other:
                made = mutated(one.genome, first_pair, self.head, self.generator, str(one.number))
            else:
                names = f"{one.number} and {other.number}"
                made = crossed(one.genome, other.genome, self.head, self.generator, names)
            if self._is_new(made) and unseen(made, children):
                children.append(made)
        return children

    def _pick(self, count: int) -> int:
        """A place in a ranking: the first half as likely again as the second."""
        return int(count * self.generator.random() ** 1.5)

    def _parents(self) -> list[Trial]:
        whole = [trial for trial in self.trials if not trial.stopped]
        return sorted(whole, key=lambda trial: trial.loss)[:PARENTS]

    def _critical_pair(self) -> int:
        """The first pair of the best table that is divided by nearly s."""
        factors = np.array(self.best.genome.factors)
        return int(np.argmax(factors >= 0.9 * factors[-1]))

    def _is_new(self, genome: Genome) -> bool:
        return unseen(genome, [trial.genome for trial in self.trials])

    def _try(self, genome: Genome, halfway: bool) -> Trial:
        """Read `genome`; `halfway` gives up on a hopeless one at half of the samples."""
        half = len(self.entries) // 2
        parents = self._parents()
        stopped = False
        if halfway and half and len(parents) >= 2:
            worst = max(self._loss(parent.genome, self.entries[:half]) for parent in parents)
            stopped = self._loss(genome, self.entries[:half]) > worst + HOPELESS
        loss = self._loss(genome, self.entries[:half] if stopped else self.entries)
        trial = Trial(len(self.trials), genome, loss, stopped)
        self.trials.append(trial)
        return trial

    def _loss(self, genome: Genome, entries: Sequence[Entry]) -> float:
        table = genome.table(self.head)
        self.reader.read(table, entries, _NoBar())
        task = self.evidence.tasks[self.evidence.fitness]
        return mean_of(self.reader.values(table, task, entries))


class _NoBar:
    """The search's bar counts tables, not their tokens."""

    def advance(self, amount: float = 1, **fields: str) -> None:
        """Nothing to show."""
