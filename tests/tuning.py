"""A reader whose losses are planted: what bake-offs and searches are tested with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from giraffe_cli.evals.base import Example, Outcome, make_task
from giraffe_cli.evals.measures import Value
from giraffe_cli.rope.base import Head
from giraffe_cli.tune.evidence import Evidence

HEAD = Head(16, 10000.0, 128, 512)
LENGTHS = (128, 256, 512)


def planted_evidence(count: int = 8, fitness: str = "nll") -> Evidence:
    """`count` documents at three lengths; every prompt is as long as it says."""
    entries = {
        "nll": {
            length: [
                (
                    "nll",
                    Example(
                        key=f"doc-{n}@600",
                        cluster=f"doc-{n}",
                        length=length,
                        token_ids=np.zeros(length, np.int32),
                        num_targets=16,
                        details={"bytes": 1},
                    ),
                )
                for n in range(count)
            ]
            for length in LENGTHS
        }
    }
    sizes = {f"doc-{n}": 600 for n in range(count)}
    return Evidence(128, 512, fitness, {"nll": make_task("nll", {})}, entries, sizes)


class PlantedReader:
    """Gives `loss(table, example)`; a token takes `pace` seconds of `now`."""

    def __init__(self, loss, pace: float = 0.0) -> None:
        self.loss, self.pace, self.now = loss, pace, 0.0
        self.checkpoint = SimpleNamespace(
            source="planted", digest="0" * 64, existing_rope=None, base_table=None
        )
        self.dtype, self.read_tokens = "float32", 0
        self.known: dict[tuple, Outcome] = {}

    def _key(self, table, example):
        return table.inv_freq, table.attention_factor, example.key, example.length

    def missing(self, table, entries):
        return [(n, e) for n, e in entries if self._key(table, e) not in self.known]

    def seconds(self, table, entries):
        return self.pace * sum(len(e.token_ids) for _, e in self.missing(table, entries))

    def read(self, table, entries, bar):
        self.now += self.seconds(table, entries)
        for _, example in self.missing(table, entries):
            self.known[self._key(table, example)] = self.loss(table, example)
            self.read_tokens += len(example.token_ids)
            bar.advance(len(example.token_ids))

    def values(self, table, task, entries):
        found = ((e.pair, self.known.get(self._key(table, e))) for _, e in entries)
        return {pair: Value(loss) for pair, loss in found if loss is not None}
