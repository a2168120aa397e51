"""Look-ups hidden in training windows: facts in made-up words, each asked for further on.

    ... as he had said. The clean hut is 4717. She turned ...     (up to a window later)
    What is the clean hut? The clean hut is 4717.

Plain text seldom needs what stands far back, so little in its loss says that far text is used. A
share of every window's tokens goes to look-ups, which need it: a fact stands behind a sentence
drawn at random, its question behind a later one or at the end. Four facts at a time share a form,
so that a key is told from its neighbours. Words are made up or the window's own; no token of a
document is lost, windows are cut that much shorter. That training on made-up look-ups carries over
to others was shown by Xiong et al. 2024 ("From Artificial Needles to Real Haystacks",
arXiv:2406.19292); what it does here, `docs/results.md` measures.

What is hidden in a window is a function of the seed, the window's number and its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from giraffe_cli.corpus.lookup_forms import Form, Sentence, Template, written
from giraffe_cli.corpus.lookup_places import Places
from giraffe_cli.corpus.lookup_words import KEYS, VALUES, Vocabulary, frequent_words
from giraffe_cli.corpus.rows import Int32, RowGroup
from giraffe_cli.corpus.tokens import DocumentTokenizer

SHARED = 4
"""Facts of one form."""
AT_THE_END = 0.3
"""Share of the questions that stand at the end of their piece."""
LEAST_ROOM = 64
"""Tokens that a window must give to look-ups: one takes about 50."""
SHORTEST = 16
"""Tokens below which no look-up is tried."""
MISSES = 3
"""Look-ups in a row that may be too long for what room is left."""
WORDS_OF = 20_000
"""Tokens of a window whose frequent words are used."""


class Lookup(NamedTuple):
    """A fact and the question for it, with its answer."""

    fact: str
    question: str


def room_for_lookups(share: float | None, window: int) -> int:
    """Tokens of a full window that are kept free for look-ups."""
    return int(window * share) if share else 0


@dataclass
class LookupHider:
    """Hides look-ups in row groups, and counts them."""

    tokenize: DocumentTokenizer
    share: float
    window: int
    """Tokens of a full window, with its look-ups."""
    seed: int
    count: int = 0
    """Look-ups hidden so far, of which fact and question are whole."""
    tokens: int = 0
    """Tokens added so far."""

    def __post_init__(self) -> None:
        self._places = Places(self.tokenize)

    def hide(self, groups: Iterable[RowGroup]) -> Iterator[RowGroup]:
        """All row groups of a packing in their order, each with look-ups in it."""
        number = 0
        for group in groups:
            yield self._group(group, number)
            number += len(group.row_lengths)

    def report(self) -> dict[str, Any]:
        """What was hidden, for `stats.json`."""
        return {"share": self.share, "count": self.count, "tokens": self.tokens}

    def _group(self, group: RowGroup, number: int) -> RowGroup:
        ends = np.concatenate([[0], np.cumsum(group.seq_lengths)])
        rows = np.concatenate([[0], np.cumsum(group.pieces)])
        made: list[Int32] = []
        for row, (first, last) in enumerate(pairwise(rows)):
            pieces = [group.input_ids[a:b] for a, b in pairwise(ends[first : last + 1])]
            made += self._row(pieces, number + row)
        lengths = np.array([len(piece) for piece in made], dtype=np.int32)
        self.tokens += int(lengths.sum()) - len(group.input_ids)
        return group._replace(
            input_ids=np.concatenate(made),
            row_lengths=np.add.reduceat(lengths, rows[:-1]).astype(np.int32),
            seq_lengths=lengths,
        )

    def _row(self, pieces: Sequence[Int32], number: int) -> list[Int32]:
        """The pieces of a window, longer by what is hidden in each; none asks for another's."""
        g = np.random.default_rng([self.seed, number])
        text = self.tokenize.tokenizer.decode(np.concatenate(pieces)[:WORDS_OF].tolist())
        lookups = drawn_lookups(g, Vocabulary(frequent_words([text])))
        return [self._piece(g, piece, lookups) for piece in pieces]

    def _piece(self, g: np.random.Generator, ids: Int32, lookups: Iterator[Lookup]) -> Int32:
        """`ids` with as many look-ups as its share of the window's room takes; one more is cut off
        where the window ends, as its text is."""
        room = room_for_lookups(self.share, self.window)
        room = room * len(ids) // (self.window - room)
        places = self._places.of(ids) if room >= SHORTEST else []
        added, spent, misses = list[tuple[int, list[int]]](), 0, 0
        while misses <= MISSES and places:
            parts = self._placed(g, ids, places, next(lookups))
            size = sum(len(part) for _, part in parts)
            if not size or spent + size > room:
                misses += 1
                continue
            added, spent, misses = added + parts, spent + size, 0
            self.count += 1
        cut = [token for _, part in parts for token in part] if added else []
        if cut and spent < room and self._places.is_open(ids):
            added.append((len(ids), np.resize(cut, room - spent).tolist()))
        return _spliced(ids, added)

    def _placed(
        self, g: np.random.Generator, ids: Int32, places: Sequence[int], look: Lookup
    ) -> list[tuple[int, list[int]]]:
        """Fact and question, the place of each in `ids` and its tokens."""
        told = int(g.integers(len(places)))
        last = len(places) - 1
        asked = last if g.random() < AT_THE_END else int(g.integers(told, last + 1))
        return [
            (places[told], self._places.encode(look.fact, ids, places[told])),
            (places[asked], self._places.encode_apart(look.question)),
        ]


def drawn_lookups(g: np.random.Generator, vocabulary: Vocabulary) -> Iterator[Lookup]:
    """Look-ups without end; no key has two values."""
    told = set[str]()
    while True:
        form = _form(g, vocabulary)
        keys, values = (vocabulary.drawn(g, kinds) for kinds in (KEYS, VALUES))
        if isinstance(form, Sentence):
            keys = vocabulary.joined(" ", 3)
        for _ in range(SHARED):
            key = keys(g)
            value = str(g.integers(10**7)) if isinstance(form, Sentence) else values(g)
            if key not in told:
                told.add(key)
                yield Lookup(form.fact(key, value), "".join(form.question(key, value)))


def _form(g: np.random.Generator, vocabulary: Vocabulary) -> Form | Template:
    kind = g.random()
    if kind < 0.5:
        return Sentence(g, vocabulary)
    return Form(g, vocabulary, 4) if kind < 0.75 else written(g)


def _spliced(ids: Int32, added: Sequence[tuple[int, list[int]]]) -> Int32:
    """`ids` with each part of `added` at its place; parts of one place in their order."""
    parts, at = list[Int32](), 0
    for place, tokens in sorted(added, key=lambda part: part[0]):
        parts += [ids[at:place], np.array(tokens, dtype=np.int32)]
        at = place
    return np.concatenate([*parts, ids[at:]])
