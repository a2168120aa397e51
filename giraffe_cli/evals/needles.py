"""Needles: RULER's sentence, what it is hidden in, and what is asked.

    One of the special magic numbers for brave-otter is: 4820193.

It is hidden in `noise` (five short sentences a line), in `text` (a haystack that differs per
sample) or among `needles` of other keys. Keys, values, the order of the needles and their places
are drawn anew for each sample; RULER's generators shuffle every sample by the same seed. Prompt,
answer prefix and match are RULER's (templates of NVIDIA/RULER, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from giraffe_cli.evals.base import AbstractTask, Example, Material, Outcome, Reference
from giraffe_cli.evals.haystack import Haystack, joined, noise_lines, sentence_border
from giraffe_cli.evals.measures import Value
from giraffe_cli.evals.prompt import (
    SPARE,
    continuation,
    fill,
    fill_in,
    ranked,
    retrieval_scores,
    share_found,
    usual,
)
from giraffe_cli.evals.words import DRAWN, Growing, Kind, draw_all

RULER = "RULER, Hsieh et al. 2024"
PLACES = 40
"""Depths a needle may lie at, evenly from 0 (first) to 1 (last)."""


def needle(kind: Kind, key: str, value: str) -> str:
    """The sentence that is hidden."""
    return f"One of the special magic {kind}s for {key} is: {value}."


class Words(NamedTuple):
    """What stands around the context."""

    before: str
    after: str
    prefix: str
    """The first words of the answer."""


def ask(kind: Kind, keys: Sequence[str], several: bool) -> Words:
    """RULER's question for the values of `keys`, in the singular or the plural."""
    asked = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    some, things, are = ("Some", f"{kind}s", "are") if several else ("A", kind, "is")
    all_are = "are all" if several else "is"
    return Words(
        f"{some} special magic {things} {are} hidden within the following text. Make sure to "
        f"memorize it. I will quiz you about the {things} afterwards.\n",
        f"\nWhat {all_are} the special magic {things} for {asked} mentioned in the provided text?",
        f" The special magic {things} for {asked} mentioned in the provided text {are}",
    )


@dataclass(frozen=True)
class Needles:
    """How many needles of which kind, and in what."""

    hidden_in: Literal["noise", "text", "needles"]
    keys: int = 1
    values: int = 1
    """Needles of each key."""
    asked: int = 1
    """Keys whose values are asked for."""
    key_kind: Kind = "word"
    value_kind: Kind = "number"


@dataclass(frozen=True)
class NeedleTask(AbstractTask):
    """One of RULER's eight: what tells it from the others is `needles`."""

    source: ClassVar[str] = RULER
    needles: ClassVar[Needles]

    samples: int = 20
    """Prompts, each with keys, values, places and haystack of its own."""
    answer_tokens: int = 128
    """Tokens generated greedily after the prompt, fewer once every answer is found."""

    def examples(self, length: int, seed: int, material: Material) -> list[Example]:
        """`samples` prompts drawn from `seed`: keys, values and depths are those of all lengths.

        Raises:
            InvalidInput: the template does not fit into `length`.
        """
        text = Haystack(material.haystack) if self.needles.hidden_in == "text" else None
        filled = fill_in if self.needles.hidden_in == "needles" else fill
        examples, units = list[Example](), 0
        for sample in range(self.samples):
            hidden = Hidden(self.needles, np.random.default_rng([seed, sample]), text, material)
            reserved = max(self.answer_tokens, hidden.answer_tokens)
            ids, units = filled(hidden.prompt, length, reserved, self.name, units, length // SPARE)
            examples.append(
                Example.of_sample(
                    sample,
                    length,
                    ids,
                    max_new_tokens=self.answer_tokens,
                    answers=tuple(hidden.answers),
                    stops_when_found=True,
                    candidates=hidden.candidates(units),
                    details={"depths": hidden.answer_depths},
                )
            )
        return examples

    def scores(self, example: Example, outcome: Outcome, reference: Reference) -> dict[str, Value]:
        """Generated: the share of the values that are substrings (string_match_all)."""
        return retrieval_scores(example, outcome, share_found(example.answers, outcome.text))


class Hidden:
    """What one sample hides and asks, and its prompt with any amount of filler."""

    def __init__(
        self,
        needles: Needles,
        generator: np.random.Generator,
        text: Haystack | None,
        material: Material,
    ) -> None:
        self._needles, self._text, self._material = needles, text, material
        # streams of their own: how much filler is tried changes no other draw
        self._generator, for_keys, for_values = generator.spawn(3)
        self._start = text.start(self._generator) if text else 0
        keys = draw_all(needles.key_kind, for_keys)
        own = list(islice(keys, needles.keys))
        several = needles.asked * needles.values > 1
        self.words = ask(needles.value_kind, own[: needles.asked], several)
        self._other_keys = Growing(keys, "keys of needles")
        self._other_values = Growing(draw_all(needles.value_kind, for_values), "values of needles")
        self._hide(own)

    def _hide(self, keys: list[str]) -> None:
        """Draw values, order and depths; answers stand in the order of keys, then of depths."""
        needles, generator = self._needles, self._generator
        draw = DRAWN[needles.value_kind]
        pairs = [
            (key, usual(draw, self._encode, generator))
            for key in keys
            for _ in range(needles.values)
        ]
        places = sorted(generator.choice(PLACES, len(pairs), replace=False).tolist())
        order = generator.permutation(len(pairs)).tolist()
        self._placed = [
            (place / (PLACES - 1), *pairs[index])
            for place, index in zip(places, order, strict=True)
        ]
        asked = keys[: needles.asked]
        answers = sorted(
            (entry for entry in self._placed if entry[1] in asked),
            key=lambda entry: (asked.index(entry[1]), entry[0]),
        )
        self.answers = [value for _, _, value in answers]
        self.answer_depths = [round(depth, 4) for depth, _, _ in answers]

    def _encode(self, value: str) -> tuple[int, ...]:
        return continuation(self._material, self.words.prefix, f" {value}")

    @property
    def answer_tokens(self) -> int:
        """Of the answer, or of the list of all."""
        return len(self._encode(", ".join(self.answers)))

    def candidates(self, units: int) -> tuple[tuple[int, ...], ...]:
        """Wrong are first the other values in the context of so many `units`."""
        pool = [value for _, _, value in self._placed if value not in self.answers]
        if self._needles.hidden_in == "needles":
            pool += self._other_values.first(units)
        draw = DRAWN[self._needles.value_kind]
        return ranked(self.answers, pool, draw, self._encode, self._generator)

    def prompt(self, units: int, sentences: int = 0) -> list[int]:
        """Token ids with `units` of filler, and some sentences of noise behind it."""
        pieces = self._filler(units)
        parts, last = list[str](), 0
        for depth, key, value in self._placed:
            place = (sentence_border if self._text else _border)(pieces, depth)
            parts += [*pieces[last:place], needle(self._needles.value_kind, key, value)]
            last = place
        parts += [*pieces[last:], *noise_lines(sentences)]
        context = joined(parts) if self._text else "\n".join(parts)
        text = self.words.before + context + self.words.after
        return self._material.prompt(text, self.words.prefix)

    def _filler(self, units: int) -> list[str]:
        """Words, lines of so many sentences, or needles."""
        if self._text:
            return self._text.cut(self._start, units)
        if self._needles.hidden_in == "noise":
            return noise_lines(units)
        others = zip(self._other_keys.first(units), self._other_values.first(units), strict=True)
        return [needle(self._needles.value_kind, key, value) for key, value in others]


def _border(pieces: Sequence[str], depth: float) -> int:
    return round(depth * len(pieces))
