#!/usr/bin/env python3
"""Hide facts in long documents and ask for them further on: text that trains far look-ups.

    python scripts/hide_lookups.py books.jsonl.gz --tokenizer models/smollm2-135m --window 32k \
        --out books-with-lookups.jsonl.gz

Packing cuts a document that is longer than a window into whole windows from its beginning. In each
of those stretches stand `--facts` facts at sentence ends drawn at random, every one asked for once,
anywhere behind it:

    ... as he had said. The clean hut is 4717. She turned ...     (up to a window later)
    What is the clean hut? The clean hut is 4717.

Four facts at a time share a form, so that a key must be told from its neighbours. Forms are those
that calf was trained on (`calf_lookups.py`): made-up words, drawn anew, none of them a template of
`giraffe eval`. A share `--plain` of the stretches holds a few made-up sentences again and again in
the place of the document's. Documents that packing holds out (`--hold-out`) stay as they are.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from calf_lookups import KEYS, VALUES, Form, Sentence, Template, Vocabulary, frequent_words, written

from giraffe_cli.corpus.base import BadRecords, Document
from giraffe_cli.corpus.holdout import choose_held_out
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.units import parse_length

SHARED = 4
"""Facts of one form."""
AT_THE_END = 0.3
"""Share of the questions that stand at the end of their window."""


@dataclass(frozen=True)
class Lookup:
    """A fact and the question for it."""

    fact: str
    question: str


class Hider:
    """Puts look-ups into documents of a tokenizer, so many in `window` tokens."""

    def __init__(
        self, tokenizer: object, texts: Sequence[str], window: int, facts: int, plain: float
    ) -> None:
        self._fast = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        self.vocabulary = Vocabulary(frequent_words(texts))
        self.window, self.facts, self.plain = window, facts, plain

    def document(self, g: np.random.Generator, text: str) -> str:
        """`text` with look-ups in every stretch of `window` tokens."""
        return "".join(stretch for stretch, _ in self.stretches(g, text))

    def stretches(self, g: np.random.Generator, text: str) -> Iterator[tuple[str, list[Lookup]]]:
        """Text of about `window` tokens and what is hidden in it, to the end of `text`, whose last
        part stays as it is."""
        ids, place, number, tokens = self._encode(text), 0, 0, 0
        while len(ids) - place >= self.window:
            lookups, number = self._lookups(g), number + 1
            asked = len(self._encode(" ".join(look.fact + look.question for look in lookups)))
            # what earlier stretches were too long or too short is made good here
            room = self.window * number - tokens - asked
            pieces = self._pieces(ids[place : place + room])
            place += sum(count for _, count in pieces)
            if g.random() < self.plain:
                pieces = self._sentences(g, room)
            stretch = self._hidden(g, pieces, lookups)
            tokens += len(self._encode(stretch))
            yield stretch, lookups
        yield self._decode(ids[place:]), []

    def _lookups(self, g: np.random.Generator) -> list[Lookup]:
        found: dict[str, Lookup] = {}
        while len(found) < self.facts:
            form = self._form(g)
            keys, values = (self.vocabulary.drawn(g, kinds) for kinds in (KEYS, VALUES))
            if isinstance(form, Sentence):
                keys = self.vocabulary.joined(" ", 3)
            for _ in range(SHARED):
                key = keys(g)
                value = str(g.integers(10**7)) if isinstance(form, Sentence) else values(g)
                question = "".join(text for text, _ in form.question(key, value))
                found.setdefault(key, Lookup(form.fact(key, value), question))
        return list(found.values())[: self.facts]

    def _form(self, g: np.random.Generator) -> Form | Template:
        kind = g.random()
        if kind < 0.5:
            return Sentence(g, self.vocabulary)
        return Form(g, self.vocabulary, 4) if kind < 0.75 else written(g)

    def _hidden(
        self, g: np.random.Generator, pieces: list[tuple[str, int]], lookups: Sequence[Lookup]
    ) -> str:
        """The sentences of `pieces` with each fact behind one of them and its question later."""
        behind: list[list[str]] = [[] for _ in pieces]
        for look in lookups:
            told = int(g.integers(len(pieces)))
            asked = len(pieces) - 1 if g.random() < AT_THE_END else g.integers(told, len(pieces))
            ends_line = pieces[told][0].endswith("\n")
            behind[told].append(f"{look.fact}\n" if ends_line else f" {look.fact}")
            behind[int(asked)].append(f"\n\n{look.question.strip()}\n\n")
        return "".join(
            text + "".join(added) for (text, _), added in zip(pieces, behind, strict=True)
        )

    def _pieces(self, ids: list[int]) -> list[tuple[str, int]]:
        """Sentences or lines, and the tokens of each; a part of a sentence at the end is left."""
        found, start = list[tuple[str, int]](), 0
        for place in range(len(ids)):
            text = self._decode(ids[start : place + 1])
            if text.endswith(("\n", ". ", ".", "!", "?")) and place - start > 8:
                found.append((text, place + 1 - start))
                start = place + 1
        return found or [(self._decode(ids), len(ids))]

    def _sentences(self, g: np.random.Generator, room: int) -> list[tuple[str, int]]:
        form = Sentence(g, self.vocabulary)
        some = [f" {form.other(g, self.vocabulary)}" for _ in range(int(g.integers(2, 7)))]
        sizes = [len(self._encode(text)) for text in some]
        count = max(1, room * len(some) // sum(sizes))
        return [(some[n % len(some)], sizes[n % len(some)]) for n in range(count)]

    def _encode(self, text: str) -> list[int]:
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def _decode(self, ids: list[int]) -> str:
        return str(self._fast.decode(ids))


def hidden_in(
    documents: Sequence[Document], hider: Hider, hold_out: float, seed: int
) -> Iterator[tuple[str, str]]:
    """Id and text of each document; those that packing holds out unchanged."""
    kept_out = choose_held_out([document.id for document in documents], hold_out)
    for number, document in enumerate(documents):
        generator = np.random.default_rng([seed, number])
        is_kept_out = document.id in kept_out
        yield (
            document.id,
            document.text if is_kept_out else hider.document(generator, document.text),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="corpora of long documents")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--window", type=parse_length, required=True, help="tokens, such as 32k")
    parser.add_argument("--facts", type=int, default=40, help="in each window")
    parser.add_argument("--plain", type=float, default=0.08)
    parser.add_argument("--hold-out", type=float, default=0.1, help="as in pack-data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    documents = [d for source in options.data for d in read_source(source, BadRecords())]
    texts = [document.text[:200_000] for document in documents]
    tokenizer = load_tokenizer(options.tokenizer)
    hider = Hider(tokenizer, texts, options.window, options.facts, options.plain)
    with gzip.open(options.out, "wt", encoding="utf-8") as handle:
        for name, text in hidden_in(documents, hider, options.hold_out, options.seed):
            handle.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
