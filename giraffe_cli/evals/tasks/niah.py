"""A needle in a haystack: a number hidden at every depth of real text that differs per sample.

    A special magic number is hidden within the following text. Make sure to memorize it. ...
    ... the end of a sentence. One of the special magic numbers for brave-otter is: 4820193. She ...
    What is the special magic number for brave-otter mentioned in the provided text?
    The special magic number for brave-otter mentioned in the provided text is

Needle and templates are RULER's; the grid of depths is Kamradt's. A sample is one haystack, one
key and one number, at all depths: prompts of a sample share what stands before the needle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.haystack import Haystack, joined, sentence_border
from giraffe_cli.evals.measures import MOST_DEPTHS, RETRIEVAL, Measure, Value
from giraffe_cli.evals.needles import ask, needle
from giraffe_cli.evals.prompt import (
    continuation,
    fill,
    ranked,
    retrieval_scores,
    share_found,
    usual_first,
)
from giraffe_cli.evals.words import number, random_key


@dataclass(frozen=True)
class Niah(AbstractTask):
    """Share of needles found, by depth and length."""

    summary: ClassVar[str] = "a number hidden at every depth of real text"
    source: ClassVar[str] = "Kamradt 2023 (grid); RULER, Hsieh et al. 2024 (needle, template)"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needs: ClassVar[tuple[str, ...]] = ("haystack",)
    most: ClassVar[Mapping[str, int]] = {"depths": MOST_DEPTHS}

    depths: int = 11
    """Places of the needle, evenly from 0 (first) to 1 (last)."""
    samples: int = 3
    """Haystacks, each with its own needle."""
    answer_tokens: int = 24
    """Tokens generated greedily after the prompt."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`samples * depths` prompts, haystacks and needles drawn from `seed`.

        Raises:
            InvalidInput: the template does not fit into `length`.
        """
        haystack = Haystack(material.haystack)
        return [
            example
            for sample in range(self.samples)
            for example in self._sample(length, sample, seed, haystack, material)
        ]

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: the number is a substring of the continuation."""
        return retrieval_scores(example, outcome, share_found(example.answers, outcome.text))

    def _sample(
        self, length: int, sample: int, seed: int, haystack: Haystack, material: Material
    ) -> list[Example]:
        generator = np.random.default_rng([seed, sample])
        start, key = haystack.start(generator), random_key(generator)
        asked = ask("number", [key], several=False)
        encode = lambda text: continuation(material, asked.prefix, f" {text}")  # noqa: E731
        value = usual_first(number, encode, generator)
        hidden = needle("number", key, value)

        def build(count: int, depth: float) -> list[int]:
            words = haystack.cut(start, count)
            place = sentence_border(words, depth)
            context = joined([*words[:place], hidden, *words[place:]])
            return material.prompt(asked.before + context + asked.after, asked.prefix)

        candidates = ranked([value], [], number, encode, generator)
        examples, units = [], 0
        for depth in np.linspace(0, 1, self.depths):
            ids, units = fill(
                lambda count, depth=depth: build(count, depth),  # type: ignore[misc]
                length,
                max(self.answer_tokens, *map(len, candidates)),
                self.name,
                units,
            )
            name = f"sample {sample} depth {depth:.2f}"
            examples.append(
                Example(
                    key=name,
                    cluster=f"sample {sample}",
                    length=length,
                    token_ids=np.asarray(ids, np.int32),
                    max_new_tokens=self.answer_tokens,
                    answers=(value,),
                    stops_when_found=True,
                    candidates=candidates,
                    details={"depth": round(float(depth), 4), "sample": sample},
                )
            )
        return examples
