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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize "
    "them. I will quiz you about the important information there."
)
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
KEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
FULL_ENOUGH = 0.97


@dataclass(frozen=True)
class Passkey(AbstractTask):
    """Share of prompts whose key the model repeats."""

    summary: ClassVar[str] = "copy a five-digit number hidden in filler"
    source: ClassVar[str] = "Mohtashami & Jaggi 2023 (landmark attention); jquesnelle/yarn passkey"
    higher_is_better: ClassVar[bool] = True
    proportion: ClassVar[bool] = True

    depths: int = 10
    """Places of the key, evenly from 0 (first) to 1 (last)."""
    trials: int = 2
    """Prompts at each depth, with different keys."""
    answer_tokens: int = 12
    """Tokens generated greedily after the prompt."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}, must be 1 or more"
            for name, value in vars(self).items()
            if not isinstance(value, int) or value < 1
        ]
        raise_together(problems, "task `passkey`")

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`depths * trials` prompts and one control without a key, keys drawn from `seed`.

        Raises:
            InvalidInput: the template does not fit into `length`, or filler cannot fill it.
        """
        sentences = self._sentences_that_fit(length, "88888", material)
        keyed = [
            self._example(
                length, _key(seed, length, index, trial), float(depth), sentences, material
            )
            for index, depth in enumerate(np.linspace(0, 1, self.depths))
            for trial in range(self.trials)
        ]
        without_key = self._sentences_that_fit(length, "", material)
        control = self._example(length, "", 0.0, without_key, material)
        keys = " ".join(example.answer for example in keyed)
        return [*_numbered(keyed, self.trials), replace(control, key="control", answer=keys)]

    def score(self, example: Example, outcome: Outcome) -> float:
        """1 when the first integer generated is the key (of a control: any key of its length)."""
        found = re.search(r"\d+", outcome.text)
        return float(found is not None and found.group() in example.answer.split())

    def _sentences_that_fit(self, length: int, key: str, material: Material) -> int:
        """The most filler sentences whose prompt leaves room for the answer, by bisection."""

        def size(sentences: int) -> int:
            prompt = _prompt(key, sentences, sentences // 2)
            return len(_encode(prompt, material)) + self.answer_tokens

        if size(1) > length:
            raise InvalidInput(
                f"task `passkey`: length {length} is too short: the template with one sentence of "
                f"filler and the answer takes {size(1)} tokens",
                "evaluate longer --lengths, or leave the task out with --tasks nll",
            )
        low, high = 1, 2
        while size(high) <= length:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if size(middle) <= length else (low, middle)
        return low

    def _example(
        self, length: int, key: str, depth: float, sentences: int, material: Material
    ) -> Example:
        """The prompt with `sentences` of filler, or a few less where this key takes more tokens."""
        for count in range(sentences, max(0, sentences - 4), -1):
            ids = _encode(_prompt(key, count, round(depth * count)), material)
            if len(ids) + self.answer_tokens <= length:
                break
        filled = len(ids) + self.answer_tokens
        if not FULL_ENOUGH * length <= filled <= length:
            raise InvalidInput(
                f"task `passkey`: whole sentences of filler fill {filled} of {length} tokens, "
                f"{FULL_ENOUGH:.0%} to 100% are needed",
                "evaluate longer --lengths, or leave the task out with --tasks nll",
            )
        details = {"control": False, "depth": round(depth, 4)} if key else {"control": True}
        return Example(
            key=key,
            cluster=key,
            length=length,
            token_ids=np.asarray(ids, np.int32),
            max_new_tokens=self.answer_tokens,
            answer=key,
            details=details,
        )


def _key(seed: int, length: int, depth_index: int, trial: int) -> str:
    """Five digits; of their own for each sample, so that more trials keep the first ones."""
    generator = np.random.default_rng([seed, length, depth_index, trial])
    return str(generator.integers(10_000, 100_000))


def _filler(start: int, stop: int) -> Iterator[str]:
    return (FILLER[index % len(FILLER)] for index in range(start, stop))


def _prompt(key: str, sentences: int, before: int) -> str:
    """The template with `before` sentences of filler ahead of the key; no key line for `""`."""
    if not key:
        return "\n".join([TASK, " ".join(_filler(0, sentences)), QUESTION])
    head, tail = " ".join(_filler(0, before)), " ".join(_filler(before, sentences))
    parts = [TASK, head, KEY_LINE.format(key=key), tail, QUESTION]
    return "\n".join(part for part in parts if part)


def _encode(prompt: str, material: Material) -> list[int]:
    return [*material.bos_token_ids, *material.encode(prompt)]


def _numbered(examples: list[Example], trials: int) -> list[Example]:
    """Names that are the same at every length, so that samples pair."""
    names = [f"depth {index // trials} trial {index % trials}" for index in range(len(examples))]
    return [replace(e, key=n, cluster=n) for e, n in zip(examples, names, strict=True)]
