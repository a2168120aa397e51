"""Passkey: copy a five-digit number out of filler, at evenly spread depths.

    There is an important info hidden inside a lot of irrelevant text. Find it ...
    The grass is green. The sky is blue. ...
    The pass key is 48213. Remember it. 48213 is the pass key.
    The grass is green. ...
    What is the pass key? The pass key is

Filler is whole sentences only, and the prompt with its answer fills 97-100 % of the length. The
first integer of the greedy continuation must be the key. One more prompt per length holds no key:
an answer that matches any key of that length there means that something leaks.
It saturates early: necessary, not sufficient.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.haystack import noise
from giraffe_cli.evals.measures import MOST_DEPTHS, RETRIEVAL, Measure, Value
from giraffe_cli.evals.prompt import continuation, fill, ranked, retrieval_scores, usual_first
from giraffe_cli.evals.words import five_digits

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
KEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key?"
PREFIX = " The pass key is"


@dataclass(frozen=True)
class Passkey(AbstractTask):
    """Share of prompts whose key the model repeats."""

    summary: ClassVar[str] = "copy a five-digit number hidden in filler"
    source: ClassVar[str] = "Mohtashami & Jaggi 2023 (landmark attention); jquesnelle/yarn passkey"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    most: ClassVar[Mapping[str, int]] = {"depths": MOST_DEPTHS}

    depths: int = 10
    """Places of the key, evenly from 0 (first) to 1 (last)."""
    trials: int = 2
    """Prompts at each depth, with different keys."""
    answer_tokens: int = 12
    """Tokens generated greedily after the prompt."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`depths * trials` prompts and one control without a key, keys drawn from `seed`.

        Raises:
            InvalidInput: the template does not fit into `length`, or filler cannot fill it.
        """
        keyed, sentences = list[Example](), 0
        encode = lambda text: continuation(material, PREFIX, f" {text}")  # noqa: E731
        for index, depth in enumerate(np.linspace(0, 1, self.depths)):
            for trial in range(self.trials):
                generator = np.random.default_rng([seed, length, index, trial])
                key = usual_first(five_digits, encode, generator)
                candidates = ranked([key], [], five_digits, encode, generator)
                room = max(self.answer_tokens, *map(len, candidates))
                ids, sentences = self._fill(key, float(depth), length, room, sentences, material)
                found = self._example(f"depth {index} trial {trial}", ids, length)
                keyed.append(
                    replace(
                        found,
                        answers=(key,),
                        candidates=candidates,
                        details={"control": False, "depth": round(float(depth), 4)},
                    )
                )
        ids, _ = self._fill("", 0.0, length, self.answer_tokens, sentences, material)
        keys = tuple(key for example in keyed for key in example.answers)
        control = self._example("control", ids, length)
        return [*keyed, replace(control, answers=keys, details={"control": True})]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: 1 when the first integer is the key (of a control: any key of its length)."""
        found = re.search(r"\d+", outcome.text)
        right = found is not None and found.group() in example.answers
        return retrieval_scores(example, outcome, float(right))

    def _fill(
        self, key: str, depth: float, length: int, room: int, sentences: int, material: Material
    ) -> tuple[list[int], int]:
        """Token ids with as much filler as leaves `room` for the answer, and its sentences."""

        def build(count: int) -> list[int]:
            return material.prompt(_prompt(key, count, round(depth * count)), PREFIX)

        return fill(build, length, room, self.name, sentences)

    def _example(self, name: str, ids: list[int], length: int) -> Example:
        return Example(
            key=name,
            cluster=name,
            length=length,
            token_ids=np.asarray(ids, np.int32),
            max_new_tokens=self.answer_tokens,
        )


def _prompt(key: str, sentences: int, before: int) -> str:
    """The template with `before` sentences of filler ahead of the key; no key line for `""`."""
    if not key:
        return "\n".join([TASK, noise(0, sentences), QUESTION])
    head, tail = noise(0, before), noise(before, sentences)
    parts = [TASK, head, KEY_LINE.format(key=key), tail, QUESTION]
    return "\n".join(part for part in parts if part)
