"""Forms of made-up look-ups: what keys and values are made of, and the words around them.

    kept mejelu "fawo-tamugi" , for: 4717!            a fact: a key, its value, words between
    limp redas "fawo-tamugi" was then liol for: 4717  a question: the value is to be found

A form is drawn anew for each text, but for the 18 of `WRITTEN`. Between key and value stand up to
eight words; keys share their parts or their beginnings with other keys.

The words of `giraffe eval`'s templates are not among them. Their build is, in two cases: records as
in JSON with groups of hex are those of `kv`, whose question is put in other words, and a sentence
among many alike is what `passkey` hides, in other words too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Draw = Callable[[np.random.Generator], str]
FACT, ASKED, PLAIN, ANSWER = 0.02, 0.1, 0.3, 1.0
SYLLABLES = [
    c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"
] + "an er in ol us ek ar im".split()
GLUE = "is of the for to : = -> => ( [ < | - , at has was by in and a with as be # / :: ==".split()
QUOTES = ['"', "'", "`", "<", "(", "[", "{", "*", "|", "<<", "**"]
OPENINGS = ["The", "The", "the", "A", "Each", "Some", "Here the", "So the", "All the", "Note: the"]
ASKING = ["What", "What", "Which", "Say what", "Tell what", "And what", "How much", "Q: what"]
CLOSED = {"<": ">", "(": ")", "[": "]", "{": "}", "<<": ">>"}


# ── keys and values ──────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Vocabulary:
    """What keys, values and connecting words are made of."""

    words: Sequence[str]

    def word(self, g: np.random.Generator) -> str:
        """A frequent word of the corpus, or one that does not exist."""
        if g.random() < 0.5:
            return "".join(SYLLABLES[i] for i in g.integers(len(SYLLABLES), size=g.integers(2, 4)))
        return self.words[g.integers(len(self.words))]

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
VALUES = "dnnnwhuuulNpi"
SHORT_KEYS, SHORT_VALUES = "wwd-PPlnu", "dddwwlnu"


def frequent_words(texts: Sequence[str], count: int = 4000) -> list[str]:
    """The most frequent words of three to nine small letters."""
    found = Counter(word for text in texts for word in re.findall(r"\b[a-z]{3,9}\b", text))
    return [word for word, _ in found.most_common(count)]


# ── forms ────────────────────────────────────────────────────────────────────────────────────


class Form:
    """How facts of one text are written, and how they are asked for.

    Args:
        far: the most words between a key and its value.
    """

    def __init__(self, g: np.random.Generator, vocabulary: Vocabulary, far: int) -> None:
        words = lambda longest: vocabulary.connector(g, min(longest, far))  # noqa: E731
        quote = QUOTES[g.integers(len(QUOTES))] if g.random() < 0.4 else ""
        pair = (quote, CLOSED.get(quote, quote))
        self.key_quotes = pair if g.random() < 0.7 else ("", "")
        self.value_quotes = pair if g.random() < 0.8 else ("", "")
        self.before, self.between = words(5), words(8)
        self.between = self.between or [":", "=", " ", "->", "\t", "|", ","][g.integers(7)]
        if g.random() < 0.4:  # as most sentences do it
            self.between += " " + "is is is was are has = :".split()[g.integers(8)]
        self.between += ":" if g.random() < 0.3 else ""
        self.after = ["", ".", ";", ",", "!", f" {words(4)}.", ""][g.integers(7)]
        self.separator = ["\n", "\n", " ", ", ", "\n\n", ",\n", "; "][g.integers(7)]
        self.ask_before, self.ask_between = self._question(g, words)
        self.lead = "" if g.random() < 0.5 else words(8) + ["? ", "\n", ": ", ". "][g.integers(4)]
        self.put_first = ["", "", "", "key", "whole", "whole"][g.integers(6)]
        self.end = self.after + ["\n", "\n", " ", "\n\n"][g.integers(4)]

    def _question(self, g: np.random.Generator, words: Callable[[int], str]) -> tuple[str, str]:
        """As in the fact; nearly so; other words before; its last words; others altogether."""
        kind = g.random()
        if kind < 0.35:
            return self.before, self.between
        if kind < 0.55:
            return _altered(g, self.before, words), _altered(g, self.between, words)
        if kind < 0.65:
            return words(8), self.between
        if kind < 0.92:
            last = self.between.split(" ")
            return words(8), f"{words(8)} {' '.join(last[int(g.integers(len(last))) :])}"
        return words(8), words(8) or ":"

    def fact(self, key: str, value: str) -> str:
        """The key, its value, and what stands around them."""
        text = self._around(self.before, key, self.between).lstrip()
        return text + _gap_after(self.between) + value.join(self.value_quotes) + self.after

    def question(self, key: str, value: str) -> list[tuple[str, float]]:
        """(text, weight): the question, its answer, what ends it."""
        lead = self.lead
        if self.put_first:  # a question, and then its answer begun
            whole = self.put_first == "whole"
            put = self._around(self.ask_before, key, self.ask_between if whole else "")
            lead += f"{put.strip()}? "
        text = (lead + self._around(self.ask_before, key, self.ask_between)).lstrip(" ")
        gap, (opening, closing) = _gap_after(self.ask_between), self.value_quotes
        # A token begins with the space before it, so a bare answer carries that space.
        answer = value if opening else gap + value
        text += gap + opening if opening else ""
        return [(text, ASKED), (answer, ANSWER), (closing + self.end, PLAIN)]

    def _around(self, before: str, key: str, between: str) -> str:
        gap = "" if between[:1] in (":", ",", "=", "\t", "") else " "
        return f"{before} {key.join(self.key_quotes)}{gap}{between}"


class Sentence(Form):
    """`The clean hut is 4717.`, asked for as `What is the clean hut? The clean hut is`."""

    def __init__(self, g: np.random.Generator, vocabulary: Vocabulary) -> None:
        super().__init__(g, vocabulary, 2)
        self.key_quotes = self.value_quotes = ("", "")
        self.before = self.ask_before = ["The", "The", "The", "My", "A", "Her"][g.integers(6)]
        verb = "is is is was has says shows".split()[g.integers(7)]
        self.between = self.ask_between = verb
        self.after, self.separator, self.put_first, self.end = ".", " ", "", ".\n"
        self.asked = f"What {verb} {self.before.lower()} "

    def question(self, key: str, value: str) -> list[tuple[str, float]]:
        """(text, weight), as `Form.question`."""
        self.lead = f"{self.asked}{key}? "
        return super().question(key, value)

    def other(self, g: np.random.Generator, vocabulary: Vocabulary) -> str:
        """A short sentence that tells something else in the same way."""
        words = [vocabulary.word(g) for _ in range(int(g.integers(1, 4)))]
        if g.random() < 0.3:
            return f"{' '.join(words).capitalize()} {vocabulary.word(g)}."
        return f"{self.before} {words[0]} {self.between} {' '.join(words[1:]) or 'there'}."


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
        other = _altered(g, thing, words) if g.random() < 0.2 else thing
        self.ask_before = f"{['The', 'The', 'the', 'A', 'This'][g.integers(5)]} {other}"
        ending = verb if g.random() < 0.7 else self.between
        self.ask_between = f"{tail} {ending}".strip()
        self.asked = f"{ASKING[g.integers(len(ASKING))]} {verb} the {other} "
        self.tail = f" {tail}" if tail else ""
        self.after = [".", ".", ".", "", ";", "!"][g.integers(6)]
        self.put_first, self.end = "", [".\n", "\n", ". ", ".\n\n"][g.integers(4)]
        self.gap = ["? ", "?\n", "?\n\n", ". ", "?\nAnswer: "][g.integers(5)]

    def question(self, key: str, value: str) -> list[tuple[str, float]]:
        """(text, weight), as `Form.question`."""
        self.lead = f"{self.asked}{key.join(self.key_quotes)}{self.tail}{self.gap}"
        return super().question(key, value)


# (record, separator, question up to the answer); made-up like the forms, but the same every time.
WRITTEN = (
    ("{k} = {v}", "\n", "{k} ="),
    ("{k}: {v}", "\n", "{k}:"),
    ("{k} -> {v}", "\n", "{k} ->"),
    ("{k} -> {v}", "; ", "where does {k} lead?"),
    ("<{k}>{v}</{k}>", "\n", "find {k}. found:"),
    ("| {k} | {v} |", "\n", "| {k} |"),
    ("({k}, {v})", ", ", "({k},"),
    ("set {k} to {v};", "\n", "show {k}; prints"),
    ("'{k}': '{v}'", ", ", "d['{k}'] == '"),
    ("'{k}': '{v}'", ",\n    ", ">>> d['{k}']\n'"),
    ('"{k}": "{v}"', ", ", 'get "{k}"; got "'),
    ("[{k}] {v}", "\n", "what stands after {k}? It is"),
    ("{k} lives at {v}.", " ", "Where does {k} live? At"),
    ("The number of {k} is {v}.", " ", "Which number has {k}? The number of {k} is"),
    ("{k} owes {v} coins.", "\n", "How many coins does {k} owe? It owes"),
    ("entry {k} holds {v}", "\n", "entry {k} holds"),
    ('item "{k}" has code "{v}"', "\n", 'item: "{k}"\ncode: "'),
    ('{name: "{k}", id: "{v}"}', ",\n", 'name: "{k}"\nits id: "'),
)


@dataclass(frozen=True)
class Template:
    """A form of fixed words; the question ends where the value begins, or its opening quote."""

    record: str
    separator: str
    asked: str
    end: str
    after = ""

    def fact(self, key: str, value: str) -> str:
        """The record of a key."""
        return self.record.replace("{k}", key).replace("{v}", value)

    def question(self, key: str, value: str) -> list[tuple[str, float]]:
        """(text, weight): the question, its answer, what ends it."""
        quote = self.asked[-1] if self.asked[-1] in "'\"" else ""
        answer = value if quote else f" {value}"
        asked = self.asked.replace("{k}", key)
        return [(asked, ASKED), (answer, ANSWER), (quote + self.end, PLAIN)]


def written(g: np.random.Generator) -> Template:
    """One of `WRITTEN`."""
    record, separator, asked = WRITTEN[g.integers(len(WRITTEN))]
    return Template(record, separator, asked, ["\n", ". ", ";\n", "\n\n"][g.integers(4)])


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


def _altered(g: np.random.Generator, text: str, words: Callable[[int], str]) -> str:
    """About three words of four, and up to two others somewhere."""
    kept = [word for word in text.split(" ") if g.random() < 0.75]
    if kept and g.random() < 0.5:
        kept[-1] = kept[-1].removesuffix(":")
    place = int(g.integers(len(kept) + 1))
    return " ".join([*kept[:place], *words(2).split(), *kept[place:]]) or ":"


def _gap_after(text: str) -> str:
    return "" if text.endswith("\t") else " "
