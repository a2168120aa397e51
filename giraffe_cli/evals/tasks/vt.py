"""RULER vt: follow a variable through a chain of assignments hidden in noise.

    The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
     VAR QWERT = 12345 The grass is green. ... VAR ASDFG = VAR QWERT The grass is green. ...
    Question: Find all variables that are assigned the value 12345 in the text above.
    Answer: According to the chain(s) of variable assignment in the text above, 5 variables are
    assgined the value 12345, they are:

One chain of four hops in order, at random places; all five names are wanted. A shorter example of
the same form, with its answer, stands before. Small models are at the floor of the generated
measure far inside their window: read the ranked one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.haystack import noise_lines
from giraffe_cli.evals.measures import RETRIEVAL_OF_SEVERAL, Measure, Value
from giraffe_cli.evals.needles import RULER
from giraffe_cli.evals.prompt import (
    SPARE,
    continuation,
    fill,
    ranked,
    retrieval_scores,
    share_found,
    usual,
)
from giraffe_cli.evals.words import five_digits

TASK = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
    "{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above."
)
PREFIX = (  # spelt as in the original
    " Answer: According to the chain(s) of variable assignment in the text above, {count} "
    "variables are assgined the value {value}, they are:"
)
HOPS = 4
EXAMPLE_SENTENCES = 50
"""Noise in the example, ten lines: with its chain less than 500 tokens."""


@dataclass(frozen=True)
class Vt(AbstractTask):
    """Share of the variables found."""

    summary: ClassVar[str] = "all variables that a chain of assignments gives one value"
    source: ClassVar[str] = RULER
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL_OF_SEVERAL

    samples: int = 20
    """Prompts, each with a chain, places and an example of its own."""
    answer_tokens: int = 30
    """Tokens generated greedily after the prompt."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`samples` prompts drawn from `seed`: chains and depths are those of all lengths.

        Raises:
            InvalidInput: the template and its example do not fit into `length`.
        """
        examples, units = list[Example](), 0
        for sample in range(self.samples):
            generator = np.random.default_rng([seed, sample])
            shown, chain = Chain(generator, 3, material), Chain(generator, 5, material)
            before = shown.text(EXAMPLE_SENTENCES) + shown.prefix + shown.answer + "\n\n\n\n"
            reserved = max(self.answer_tokens, len(chain.encode(" ".join(chain.names))))

            def build(sentences: int, before: str = before, chain: Chain = chain) -> list[int]:
                return material.prompt(before + chain.text(sentences), chain.prefix)

            ids, units = fill(build, length, reserved, self.name, units, length // SPARE)
            examples.append(
                Example.of_sample(
                    sample,
                    length,
                    ids,
                    max_new_tokens=self.answer_tokens,
                    answers=tuple(chain.names),
                    stops_when_found=True,
                    candidates=ranked(
                        chain.names, shown.names, chain.name, chain.encode, generator, " "
                    ),
                    details={"depths": [round(d, 4) for d in chain.depths]},
                )
            )
        return examples

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: the share of the names that are substrings (string_match_all)."""
        return retrieval_scores(example, outcome, share_found(example.answers, outcome.text))


class Chain:
    """Variables of one value, and where their assignments stand in the noise."""

    def __init__(self, generator: np.random.Generator, letters: int, material: Material) -> None:
        self._material, self._letters = material, letters
        self.value = five_digits(generator)
        self.prefix = PREFIX.format(count=HOPS + 1, value=self.value)
        self.names = list[str]()
        while len(self.names) <= HOPS:
            name = usual(self.name, self.encode, generator)
            self.names += [name] if name not in self.names else []
        self.depths: list[float] = np.sort(generator.random(HOPS + 1)).tolist()

    def name(self, generator: np.random.Generator) -> str:
        """So many random capitals."""
        return "".join(map(chr, (65 + generator.integers(26, size=self._letters)).tolist()))

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of the answer `text`."""
        return continuation(self._material, self.prefix, f" {text}")

    @property
    def answer(self) -> str:
        """All names, as they follow the prefix."""
        return " " + " ".join(self.names)

    def text(self, sentences: int) -> str:
        """The task with so many sentences of noise."""
        lines = [f"{line}\n" for line in noise_lines(sentences)]
        parts, last = list[str](), 0
        for depth, assignment in zip(self.depths, self._assignments(), strict=True):
            place = round(depth * len(lines))
            parts += [*lines[last:place], assignment]
            last = place
        return TASK.format(context=" ".join([*parts, *lines[last:]]), value=self.value)

    def _assignments(self) -> Sequence[str]:
        values = [self.value, *(f"VAR {name}" for name in self.names)]
        return [f"VAR {name} = {value}" for name, value in zip(self.names, values, strict=False)]
