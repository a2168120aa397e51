"""Needle-driven NLL: the loss of the answers alone, of many look-ups in one prompt.

    <text> One of the special magic numbers for brave-otter is: 4820193. <text> ...

    The special magic number for dusty-canoe is: [1193775]
    The special magic number for brave-otter is: [4820193]

Needles lie evenly from the first word to the last, the questions stand in another order, and only
the tokens in brackets count. Of text alone a few tokens in a hundred need what is far away; here
all do, so that one reading of a long prompt tells tables apart that its perplexity does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.haystack import Haystack, joined, sentence_border
from giraffe_cli.evals.measures import Measure, Value
from giraffe_cli.evals.needles import needle
from giraffe_cli.evals.prompt import SPARE, continuation, fill
from giraffe_cli.evals.words import draw_all

BEFORE = "Special magic numbers are hidden within the following text. Memorize them.\n"
AFTER = "\nThese are the special magic numbers mentioned in the text:"
ASKED = "\nThe special magic number for {key} is:"


@dataclass(frozen=True)
class NeedleNll(AbstractTask):
    """Mean negative log-likelihood of hidden numbers, nats per token of theirs."""

    summary: ClassVar[str] = "loss on the answer tokens of many look-ups in one prompt"
    source: ClassVar[str] = "needle-driven perplexity of LongRoPE2 (Shang et al. 2025)"
    measures: ClassVar[Mapping[str, Measure]] = {
        "": Measure("loss of hidden numbers when they are asked for", False, "mean", 0, "nats")
    }
    needs: ClassVar[tuple[str, ...]] = ("haystack",)

    samples: int = 8
    """Prompts, each with numbers and text of its own."""
    needles: int = 8
    """Numbers hidden in a prompt, all of which are asked for."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`samples` prompts drawn from `seed`: keys and numbers are those of all lengths.

        Raises:
            InvalidInput: the needles and questions do not fit into `length`.
        """
        text, examples, units = Haystack(material.haystack), list[Example](), 0
        for sample in range(self.samples):
            hidden = Hidden(self.needles, np.random.default_rng([seed, sample]), text, material)
            ids, units = fill(hidden.prompt, length, 0, self.name, units, length // SPARE)
            examples.append(
                Example.of_sample(
                    sample,
                    length,
                    ids,
                    num_targets=len(hidden.questions) - hidden.spans[0][0],
                    details={"answers": hidden.answer_spans},
                )
            )
        return examples

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Mean over the tokens of the answers, each as much as any other."""
        answers = [outcome.target_nll[start:stop] for start, stop in example.details["answers"]]
        nats = np.concatenate(answers)
        return {"": Value(float(nats.mean()), float(len(nats)))}


class Hidden:
    """What one prompt hides, and the questions at its end as token ids."""

    def __init__(
        self, needles: int, generator: np.random.Generator, text: Haystack, material: Material
    ) -> None:
        self._text, self._material = text, material
        generator, for_keys, for_values = generator.spawn(3)
        self._start = text.start(generator)
        keys = islice(draw_all("word", for_keys), needles)
        self._pairs = list(zip(keys, draw_all("number", for_values), strict=False))
        self.questions: list[int] = []
        self.spans: list[tuple[int, int]] = []
        """Start and end of each answer in `questions`."""
        for index in generator.permutation(needles).tolist():
            self._ask(*self._pairs[index])

    def _ask(self, key: str, value: str) -> None:
        asked = ASKED.format(key=key)
        answer = continuation(self._material, asked, f" {value}")
        self.questions += self._material.encode(asked)
        self.spans.append((len(self.questions), len(self.questions) + len(answer)))
        self.questions += answer

    @property
    def answer_spans(self) -> list[list[int]]:
        """The same from the first answer on, which is where targets begin."""
        first = self.spans[0][0]
        return [[start - first, stop - first] for start, stop in self.spans]

    def prompt(self, words: int) -> list[int]:
        """Token ids with so many words of text."""
        pieces, parts, last = self._text.cut(self._start, words), list[str](), 0
        for depth, (key, value) in zip(
            np.linspace(0, 1, len(self._pairs)).tolist(), self._pairs, strict=True
        ):
            place = sentence_border(pieces, depth)
            parts += [*pieces[last:place], needle("number", key, value)]
            last = place
        context = joined([*parts, *pieces[last:]])
        return [*self._material.prompt(BEFORE + context + AFTER, ""), *self.questions]
