"""What the keys and values of look-ups are made of, and the words around them.

    vocabulary.word(g)            → `mejelu`, or a frequent word of a text
    vocabulary.drawn(g, "P")(g)   → `fawo-tamugi`, of a pool whose halves others share
    hex_groups(g)(g)              → `3f9a-c07b`

All are functions of the generator `g`.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Draw = Callable[[np.random.Generator], str]
SYLLABLES = [
    c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"
] + "an er in ol us ek ar im".split()
GLUE = "is of the for to : = -> => ( [ < | - , at has was by in and a with as be # / :: ==".split()


@dataclass(frozen=True)
class Vocabulary:
    """What keys, values and connecting words are made of."""

    words: Sequence[str]
    """Frequent words of a text; may be none."""

    def word(self, g: np.random.Generator) -> str:
        """A frequent word of the text, or one that does not exist."""
        if not self.words or g.random() < 0.5:
            return "".join(SYLLABLES[i] for i in g.integers(len(SYLLABLES), size=g.integers(2, 4)))
        return self.words[int(g.integers(len(self.words)))]

    def connector(self, g: np.random.Generator, longest: int) -> str:
        """Up to `longest` words and signs."""
        parts = []
        for _ in range(int(g.integers(0, longest + 1))):
            if g.random() < 0.4:
                parts.append(GLUE[g.integers(len(GLUE))])
            else:
                word = self.word(g)
                parts.append(word if g.random() < 0.85 else word.upper())
        return " ".join(parts)

    def joined(self, sign: str, longest: int) -> Draw:
        """Up to `longest` words with `sign` between them."""
        return lambda g: sign.join(self.word(g) for _ in range(int(g.integers(1, longest + 1))))

    def name(self, g: np.random.Generator) -> str:
        """One or two words with capitals."""
        return " ".join(self.word(g).capitalize() for _ in range(int(g.integers(1, 3))))

    def pooled(self, g: np.random.Generator) -> Draw:
        """Pairs of words of which others have either one: `fawo-tamugi`, `fawo-mejelu`."""
        pool = [[self.word(g) for _ in range(int(g.integers(3, 12)))] for _ in range(2)]
        sign = ["-", " ", "_", ".", "/"][g.integers(5)]
        return lambda g: sign.join(words[g.integers(len(words))] for words in pool)

    def drawn(self, g: np.random.Generator, kinds: str) -> Draw:
        """One of `kinds`, the letters of `w`ords, `n`umbers, `h`ex, `u`: groups of hex, ..."""
        kind = kinds[g.integers(len(kinds))]
        every: dict[str, Draw] = {
            "w": self.word,
            "d": lambda g: _signs(g, string.digits, int(g.integers(2, 9))),
            "h": lambda g: _signs(g, "0123456789abcdef", int(g.integers(4, 33))),
            "l": lambda g: _signs(g, string.ascii_uppercase, int(g.integers(2, 7))),
            "i": self.joined("_", 3),
            "-": lambda g: f"{self.word(g)}-{self.word(g)}",
            "p": self.joined(" ", 3),
            "N": self.name,
        }
        if kind in every:
            return every[kind]
        return {"P": self.pooled, "u": hex_groups, "n": numbers}[kind](g)


def _signs(g: np.random.Generator, alphabet: str, count: int) -> str:
    return "".join(alphabet[i] for i in g.integers(0, len(alphabet), count))


def hex_groups(g: np.random.Generator) -> Draw:
    """Groups of hex digits in one shape, a tenth of them with an equal beginning."""
    shape = [8, 4, 4, 4, 12]
    if g.random() < 0.6:
        shape = [int(x) for x in g.integers(2, 13, int(g.integers(2, 6)))]
    begin = _signs(g, "0123456789abcdef", int(g.integers(1, 3))) if g.random() < 0.1 else ""
    return lambda g: begin + "-".join(_signs(g, "0123456789abcdef", n) for n in shape)


def numbers(g: np.random.Generator) -> Draw:
    """Numbers of one length."""
    count = int(g.integers(2, 10))
    return lambda g: _signs(g, string.digits, count)


KEYS = "wdhi-NlpPPPuuun"
"""Kinds for `drawn`, the more often the more copies."""
VALUES = "dnnnwhuuulNpi"


def frequent_words(texts: Sequence[str], count: int = 4000) -> list[str]:
    """The most frequent words of three to nine small letters."""
    found = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    return [word for word, _ in found.most_common(count)]
