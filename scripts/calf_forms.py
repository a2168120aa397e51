"""Forms of look-ups that calf learns from beside those of `giraffe_cli/corpus/lookup_forms.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from giraffe_cli.corpus.lookup_forms import Form, Question, Template, altered
from giraffe_cli.corpus.lookup_words import Vocabulary

FACT, ASKED, PLAIN, ANSWER = 0.02, 0.1, 0.3, 1.0
"""What a token weighs as a target."""
SHORT_KEYS, SHORT_VALUES = "wwd-PPlnu", "dddwwlnu"
"""Kinds for `Vocabulary.drawn` in short windows."""
OPENINGS = ["The", "The", "the", "A", "Each", "Some", "Here the", "So the", "All the", "Note: the"]
ASKING = ["What", "What", "Which", "Say what", "Tell what", "And what", "How much", "Q: what"]


def weighed(question: Question) -> Sequence[tuple[str, float]]:
    """(text, weight) of the parts of a question."""
    return list(zip(question, (ASKED, ANSWER, PLAIN), strict=True))


class Clause(Form):
    """`Each fawo pelu of mejelu is: 4717.`, asked for with more words behind the key.

    Which is the fawo pelu of mejelu tuli oren? The fawo pelu of mejelu tuli oren is
    """

    def __init__(self, g: np.random.Generator, vocabulary: Vocabulary) -> None:
        super().__init__(g, vocabulary, 8)
        words = lambda longest: vocabulary.connector(g, longest)  # noqa: E731
        quote = ["", "", "", "", "", "'", '"', "`"][g.integers(8)]
        self.key_quotes, self.value_quotes = (quote, quote), ("", "")
        preposition = "of for in at from with on to by as".split()[g.integers(10)]
        thing = f"{vocabulary.joined(' ', 3)(g)} {preposition}"
        verb = "is is is is was are were has".split()[g.integers(8)]
        opening = f"{OPENINGS[g.integers(len(OPENINGS))]} {words(3) if g.random() < 0.3 else ''}"
        self.before = f"{opening.strip()} {thing}".strip()
        self.between = verb + ["", "", ":", ":", " the", " now"][g.integers(6)]
        tail = words(7) if g.random() < 0.7 else ""
        other = altered(g, thing, words) if g.random() < 0.2 else thing
        self.ask_before = f"{['The', 'The', 'the', 'A', 'This'][g.integers(5)]} {other}"
        ending = verb if g.random() < 0.7 else self.between
        self.ask_between = f"{tail} {ending}".strip()
        self.asked = f"{ASKING[g.integers(len(ASKING))]} {verb} the {other} "
        self.tail = f" {tail}" if tail else ""
        self.after = [".", ".", ".", "", ";", "!"][g.integers(6)]
        self.put_first, self.end = "", [".\n", "\n", ". ", ".\n\n"][g.integers(4)]
        self.gap = ["? ", "?\n", "?\n\n", ". ", "?\nAnswer: "][g.integers(5)]

    def question(self, key: str, value: str) -> Question:
        """As `Form.question`."""
        self.lead = f"{self.asked}{key.join(self.key_quotes)}{self.tail}{self.gap}"
        return super().question(key, value)


def quoted(g: np.random.Generator, vocabulary: Vocabulary) -> Template:
    """Records as in JSON or in a program, asked for by labels that no record has."""
    q = '"' if g.random() < 0.75 else "'"
    colon = [": ", ": ", ": ", " : ", ":", " => ", " = ", ", "][g.integers(8)]
    separator = [",\n ", ",\n ", ", ", ",\n", ",\n    ", "\n", "; "][g.integers(7)]
    label = lambda most: vocabulary.joined(" ", most)(g).capitalize()  # noqa: E731
    sign = [":", ":", ":", " =", "", " is", "?"]
    first, second = (sign[g.integers(7)] for _ in range(2))
    line = ["\n", "\n", "\n", " ", ", ", "\n\n"][g.integers(6)]
    asked = f"{label(2)}{first} {q}{{k}}{q}{line}{label(3)}{second} {q}"
    return Template(
        f"{q}{{k}}{q}{colon}{q}{{v}}{q}", separator, asked, ["\n", "\n\n", " "][g.integers(3)]
    )
