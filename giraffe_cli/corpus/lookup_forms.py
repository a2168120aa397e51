"""Forms of look-ups: how a fact is written, and how it is asked for.

    kept mejelu "fawo-tamugi" , for: 4717!            a fact: a key, its value, words between
    limp redas "fawo-tamugi" was then liol for: 4717  a question: the value is to be found

A form is drawn anew for each text, but for the 18 of `WRITTEN`. Between key and value stand up to
eight words; keys share their parts or their beginnings with other keys.

The words of `giraffe eval`'s templates are not among them. The build of two is: records as in JSON,
which `kv` has, and a sentence among others, which `passkey` hides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from giraffe_cli.corpus.lookup_words import Vocabulary

QUOTES = ['"', "'", "`", "<", "(", "[", "{", "*", "|", "<<", "**"]
CLOSED = {"<": ">", "(": ")", "[": "]", "{": "}", "<<": ">>"}


class Question(NamedTuple):
    """Three texts, one after the other."""

    asked: str
    answer: str
    end: str


class Form:
    """How facts of one text are written, and how they are asked for.

    Args:
        far: the most words between a key and its value.
    """

    def __init__(self, g: np.random.Generator, vocabulary: Vocabulary, far: int) -> None:
        def words(longest: int) -> str:
            return vocabulary.connector(g, min(longest, far))

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
            return altered(g, self.before, words), altered(g, self.between, words)
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

    def question(self, key: str, value: str) -> Question:
        """That asks for the key's value."""
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
        return Question(text, answer, closing + self.end)

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

    def question(self, key: str, value: str) -> Question:
        """As `Form.question`."""
        self.lead = f"{self.asked}{key}? "
        return super().question(key, value)

    def other(self, g: np.random.Generator, vocabulary: Vocabulary) -> str:
        """A short sentence that tells something else in the same way."""
        words = [vocabulary.word(g) for _ in range(int(g.integers(1, 4)))]
        if g.random() < 0.3:
            return f"{' '.join(words).capitalize()} {vocabulary.word(g)}."
        return f"{self.before} {words[0]} {self.between} {' '.join(words[1:]) or 'there'}."


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

    def question(self, key: str, value: str) -> Question:
        """As `Form.question`."""
        quote = self.asked[-1] if self.asked[-1] in "'\"" else ""
        answer = value if quote else f" {value}"
        asked = self.asked.replace("{k}", key)
        return Question(asked, answer, quote + self.end)


def written(g: np.random.Generator) -> Template:
    """One of `WRITTEN`."""
    record, separator, asked = WRITTEN[g.integers(len(WRITTEN))]
    return Template(record, separator, asked, ["\n", ". ", ";\n", "\n\n"][g.integers(4)])


def altered(g: np.random.Generator, text: str, words: Callable[[int], str]) -> str:
    """About three words of four, and up to two others somewhere."""
    kept = [word for word in text.split(" ") if g.random() < 0.75]
    if kept and g.random() < 0.5:
        kept[-1] = kept[-1].removesuffix(":")
    place = int(g.integers(len(kept) + 1))
    return " ".join([*kept[:place], *words(2).split(), *kept[place:]]) or ":"


def _gap_after(text: str) -> str:
    return "" if text.endswith("\t") else " "
