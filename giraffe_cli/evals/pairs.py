"""A record of pairs, of which one at each depth is asked for: the lines and kv tasks.

    a: 1    b: 2    c: 3    d: 4    e: 5      depths=3 → what is a? what is c? what is e?

All questions of a sample ask one record, which a model therefore reads once. Where whole pairs
leave more than 3 % of a short length empty, sentences of noise stand between record and question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, NamedTuple

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material
from giraffe_cli.evals.haystack import noise
from giraffe_cli.evals.measures import MOST_DEPTHS, RETRIEVAL, Measure
from giraffe_cli.evals.prompt import SPARE, continuation, fill_in, ranked, usual
from giraffe_cli.evals.words import DRAWN, Growing, Kind, draw_all


class Record(NamedTuple):
    """The words of a protocol; `{key}` and `{value}` stand for what is drawn."""

    before: str
    pair: str
    between: str
    after: str
    question: str
    prefix: str
    """The first words of the answer."""
    key_kind: Kind
    value_kind: Kind
    stops_when_found: bool
    """Whether the match is settled as soon as the value stands in the generation."""


@dataclass(frozen=True)
class PairTask(AbstractTask):
    """What tells one such task from another is its `record`, and how an answer is matched."""

    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    most: ClassVar[Mapping[str, int]] = {"depths": MOST_DEPTHS}
    record: ClassVar[Record]

    samples: int = 20
    """Records, each with pairs of its own."""
    depths: int = 6
    """Pairs of a record that are asked for, evenly from 0 (first) to 1 (last)."""
    answer_tokens: int = 48
    """Tokens generated greedily after the prompt."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`samples * depths` prompts drawn from `seed`, which ask the same pairs at every length.

        Raises:
            InvalidInput: the template does not fit into `length`, or more keys are needed than
                there are.
        """
        examples, units = list[Example](), 0
        for sample in range(self.samples):
            pairs = Pairs(self.record, self.depths, np.random.default_rng([seed, sample]), material)
            for index, depth in enumerate(pairs.depths):
                reserved = max(self.answer_tokens, pairs.answer_tokens(index))
                build = pairs.builder(index)
                ids, units = fill_in(build, length, reserved, self.name, units, length // SPARE)
                examples.append(
                    Example(
                        key=f"sample {sample} depth {depth:.2f}",
                        cluster=f"sample {sample}",
                        length=length,
                        token_ids=np.asarray(ids, np.int32),
                        max_new_tokens=self.answer_tokens,
                        answers=(pairs.asked[index][1],),
                        stops_when_found=self.record.stops_when_found,
                        candidates=pairs.candidates(index, units),
                        details={"depth": round(depth, 4), "sample": sample},
                    )
                )
        return examples


class Pairs:
    """The pairs of one sample: those that are asked for, and as many others as are needed."""

    def __init__(
        self, record: Record, depths: int, generator: np.random.Generator, material: Material
    ) -> None:
        self._record, self._material = record, material
        # streams of their own: how many pairs are tried changes no other draw
        self._generator, for_keys, for_values = generator.spawn(3)
        self._draw = DRAWN[record.value_kind]
        self.depths: list[float] = np.linspace(0, 1, depths).tolist()
        keys = draw_all(record.key_kind, for_keys)
        self.asked = list[tuple[str, str]]()
        for key in islice(keys, depths):
            self.asked.append((key, self._value(key)))
        self._keys = Growing(keys, "keys of a record")
        taken = {value for _, value in self.asked}
        others = (v for v in draw_all(record.value_kind, for_values) if v not in taken)
        self._values = Growing(others, "values of a record")

    def builder(self, index: int) -> Callable[[int, int], list[int]]:
        """The prompt that asks for pair `index`: token ids of so many pairs and sentences."""
        record, key = self._record, self.asked[index][0]
        question, prefix = record.question.format(key=key), record.prefix.format(key=key)

        def build(units: int, sentences: int) -> list[int]:
            pairs = [record.pair.format(key=k, value=v) for k, v in self._pairs(index, units)]
            rest = f"\n{noise(0, sentences)}\n" if sentences else ""
            text = record.before + record.between.join(pairs) + record.after + rest + question
            return self._material.prompt(text, prefix)

        return build

    def _pairs(self, index: int, units: int) -> list[tuple[str, str]]:
        """The record; in one of fewer pairs than depths pair `index` stands before others."""
        pairs = list(zip(self._keys.first(units), self._values.first(units), strict=True))
        for asked in [*range(len(self.asked)), index]:
            pairs[round(self.depths[asked] * (units - 1))] = self.asked[asked]
        return pairs

    def _value(self, key: str) -> str:
        """One that no other asked pair has."""
        taken = {value for _, value in self.asked}
        while True:
            value = usual(self._draw, lambda value: self._encode(key, value), self._generator)
            if value not in taken:
                return value

    def _encode(self, key: str, value: str) -> tuple[int, ...]:
        return continuation(self._material, self._record.prefix.format(key=key), value)

    def answer_tokens(self, index: int) -> int:
        """Tokens of the value of pair `index`."""
        return len(self._encode(*self.asked[index]))

    def candidates(self, index: int, units: int) -> tuple[tuple[int, ...], ...]:
        """Wrong are first the other values of a record of `units` pairs."""
        key, answer = self.asked[index]
        pool = [value for _, value in self._pairs(index, units) if value != answer]
        return ranked(
            [answer], pool, self._draw, lambda value: self._encode(key, value), self._generator
        )
