"""Windows of look-ups that calf learns from: facts, and questions about them, in made-up forms.

Four kinds, one a window, all drawn by a generator:

    repeat   tokens drawn at random, again and again: every token of a repetition is an answer
    pairs    records of a few such tokens, key, gap and value: a key seen before has its old value
    dense    records and nothing else, then questions about them
    hidden   a few facts in real text or in sentences that repeat, then questions about them

    kept mejelu "fawo-tamugi" , for: 4717!            a fact: a key, its value, words between
    limp redas "fawo-tamugi" was then liol for: 4717  a question: the value is to be found

A form (the words and signs around key and value, in facts and in questions) is drawn anew for each
text, but for a quarter of the records, whose forms are the 18 of `WRITTEN`. Between key and value
stand up to eight words; keys share their parts or their beginnings with other keys. Tokens of an
answer weigh 1 (times a factor that the training chooses), what cannot be known weighs little.

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
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Part = tuple[Ids, Weights]
Draw = Callable[[np.random.Generator], str]

KINDS = ("repeat", "pairs", *("dense",) * 4, *("hidden",) * 5)
FACT, ASKED, PLAIN, ANSWER = 0.02, 0.1, 0.3, 1.0
SYLLABLES = [
    c + v for c in "bdfghjklmnprstvwz" for v in "aeiou"
] + "an er in ol us ek ar im".split()
GLUE = "is of the for to : = -> => ( [ < | - , at has was by in and a with as be # / :: ==".split()
QUOTES = ['"', "'", "`", "<", "(", "[", "{", "*", "|", "<<", "**"]
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


# ── windows ──────────────────────────────────────────────────────────────────────────────────


def farthest(length: int) -> int:
    """Words between a key and its value, at most, in a window of so many tokens."""
    return 2 if length <= 130 else 4 if length <= 260 else 8


class Lookups:
    """Draws windows of look-ups.

    Args:
        tokenizer: calf's; its vocabulary is what `repeat` draws from.
        stream: token ids of real text, that facts are hidden in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stream: npt.NDArray[np.uint16]) -> None:
        self.tokenizer, self.stream = tokenizer, stream
        places = range(0, max(1, len(stream) - 20_000), max(1, len(stream) // 38))
        self.vocabulary = Vocabulary(
            frequent_words([tokenizer.decode(stream[p : p + 20_000]) for p in places])
        )
        every = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        self.ends_sentence = np.array([any(c in text for c in ".\n;") for text in every])

    def window(
        self, g: np.random.Generator, length: int, kinds: Sequence[str] = KINDS
    ) -> tuple[Ids, Weights]:
        """`[length]` token ids and the weight of each as a target."""
        kind = kinds[g.integers(len(kinds))]
        if kind == "repeat":
            return self._repeat(g, length)
        if kind == "pairs":
            return self._pairs(g, length)
        parts = [(np.array([self.tokenizer.bos_token_id]), np.zeros(1, np.float32))]
        left = length - 1
        while left > 0:
            parts.append(self._text(g, kind, left, length))
            left -= len(parts[-1][0])
        ids, weights = _joined(parts)
        return ids[:length], weights[:length]

    def _text(self, g: np.random.Generator, kind: str, left: int, length: int) -> Part:
        """Records or hidden facts in up to `left` tokens; a form grows with the window."""
        far = farthest(length)
        share = 1.0 if left <= 160 else g.uniform(0.3, 1.0)
        if kind == "hidden":
            share = 1.0 if g.random() < 0.3 else g.uniform(0.1, 0.6)
        room = max(min(left, 100), int(left * share))
        if kind == "dense":
            return self._dense(g, room, far)
        for _ in range(4):
            part = self._hidden(g, room, far)
            if len(part[0]) <= left:
                break
        return part

    def _repeat(self, g: np.random.Generator, length: int) -> Part:
        count = int(g.integers(4, max(5, length // 2)))
        pool = g.integers(
            2, len(self.tokenizer), int(g.integers(max(8, count // 2), 4 * count + 8))
        )
        first = pool[g.integers(len(pool), size=count)]
        weights = np.full(length, ANSWER, np.float32)
        weights[: count + 1] = 0.0
        return np.tile(first, length // count + 1)[:length].astype(np.int64), weights

    def _pairs(self, g: np.random.Generator, length: int) -> Part:
        """Keys in any order and again: `before key gap value after`, all but the first known."""
        drawn = lambda most, least=0: g.integers(2, vocabulary, int(g.integers(least, most + 1)))  # noqa: E731
        vocabulary, far = len(self.tokenizer), min(4, farthest(length))
        layouts = [[drawn(2), drawn(far), drawn(1)]]
        if g.random() < 0.4:  # asked for in other words
            gap = layouts[0][1]  # its end, at least one token, says that the value comes
            kept = gap[int(g.integers(len(gap))) :] if len(gap) else gap
            layouts.append([drawn(2), np.concatenate([drawn(far), kept]), layouts[0][2]])
        pools = [drawn(most, 6) for most in (int(g.integers(8, 300)), 300)]
        key_length, value_length = g.integers(1, 5, 2)
        if g.random() < 0.2:
            key_length = g.integers(5, max(6, min(30, length // 12)))
        size = key_length + value_length + sum(map(len, layouts[0]))
        count = int(min(g.integers(2, 90), max(2, length // (2 * size))))
        keys, values = (
            pool[g.integers(len(pool), size=(count, n))]
            for pool, n in zip(pools, (key_length, value_length), strict=True)
        )
        keys, first = np.unique(keys, axis=0, return_index=True)
        values, count = values[first], len(keys)
        least = count * (key_length + value_length + min(sum(map(len, one)) for one in layouts))
        order = np.concatenate([g.permutation(count) for _ in range(length // least + 1)])
        if g.random() < 0.5:  # not all of them first
            order = g.integers(0, count, len(order))
        seen, parts = (
            set[int](),
            [(np.array([self.tokenizer.bos_token_id]), np.zeros(1, np.float32))],
        )
        for which in order.tolist():
            before, gap, after = layouts[-1 if which in seen else 0]
            known = ANSWER if which in seen else FACT
            for ids, weight in ((before, ASKED), (keys[which], FACT), (gap, ASKED)):
                parts.append((ids, np.full(len(ids), weight, np.float32)))
            parts.append((values[which], np.full(value_length, known, np.float32)))
            parts.append((after, np.full(len(after), ASKED, np.float32)))
            seen.add(which)
        ids, weights = _joined(parts)
        return ids[:length].astype(np.int64), weights[:length]

    def _dense(self, g: np.random.Generator, room: int, far: int) -> Part:
        """`room` tokens: records, then questions about them."""
        kind = g.random()
        form: Form | Template = Form(g, self.vocabulary, min(far, 4))
        if kind < 0.7:
            form = quoted(g, self.vocabulary) if kind < 0.45 else written(g)
        most = room // 5 + 1
        facts = self._facts(
            g, min(most, int(g.integers(1, 60))) if g.random() < 0.6 else most, room
        )
        words = [0, 0, 0, 0, 0, room // 50, room // 25][g.integers(7)]
        lead = (
            f"{self.vocabulary.connector(g, words)}:\n" if words else ["", "{", "["][g.integers(3)]
        )
        told = [form.fact(*fact) + form.separator for fact in facts]
        share, tokens = room * g.uniform(0.25, 0.65), self._encode([(lead, FACT)])[0]
        ends = np.cumsum([len(self._encode([(text, FACT)])[0]) for text in told]) + len(tokens)
        facts = facts[: max(1, int((ends < share).sum()))]
        records = self._encode([(lead + "".join(told[: len(facts)]), FACT)])
        pieces = [(["\n", "\n\n", "}\n", "]\n"][g.integers(4)], FACT)]
        # Every key once, in any order: a second answer could be copied from the first one.
        for which in g.permutation(len(facts)):
            pieces += form.question(*facts[which])
        ids, weights = _joined([records, self._encode(pieces)])
        return ids[:room], weights[:room]

    def _hidden(self, g: np.random.Generator, room: int, far: int) -> Part:
        """About `room` tokens: facts between sentences of other text, questions at the end."""
        form, most = Form(g, self.vocabulary, far), 3 + room // 100
        facts = self._facts(g, int(g.integers(2, most)) if g.random() < 0.5 else 1, room)
        if g.random() < 0.5:
            form, phrase = Sentence(g, self.vocabulary), self.vocabulary.joined(" ", 3)
            facts = [
                (phrase(g), value if value.isdigit() else str(g.integers(10**7)))
                for _, value in facts
            ]
            facts = list(dict(facts).items())
        twice = g.random() < 0.3
        told = [self._told(g, form, fact, twice) for fact in facts]
        head = self.vocabulary.connector(g, room // 30) if g.random() < 0.5 else ""
        if head and g.random() < 0.5:  # words of the form where no fact is
            head = f"{form.ask_before} {head} {form.between}"
        asked = [(" \n", FACT)]
        for which in g.permutation(len(facts))[:4]:
            asked += form.question(*facts[which])
        begin, end = self._encode([(f"{head}.\n" if head else "", FACT)]), self._encode(asked)
        spare = max(8, room - sum(len(part[0]) for part in (begin, end, *told)))
        filler, parts, at = self._filler(g, spare, form), [begin], 0
        for number, place in enumerate(self._places(g, filler, len(told))):
            parts += [_plain(filler[at:place]), told[number]]
            at = place
        return _joined([*parts, _plain(filler[at:]), end])

    def _facts(self, g: np.random.Generator, count: int, room: int) -> list[tuple[str, str]]:
        """Up to `count` pairs, keys of one kind and values of one kind, no key twice."""
        keys, values = (SHORT_KEYS, SHORT_VALUES) if room <= 260 else (KEYS, VALUES)
        key, value = self.vocabulary.drawn(g, keys), self.vocabulary.drawn(g, values)
        return list({key(g): value(g) for _ in range(count)}.items())

    def _told(self, g: np.random.Generator, form: Form, fact: tuple[str, str], twice: bool) -> Part:
        text = form.fact(*fact) + ("" if form.after else ".")
        if twice:
            connector, words = self.vocabulary.connector, form.before
            begin, end = (connector(g, 3), connector(g, 4)) if g.random() < 0.5 else ("", words)
            text += f" {begin} {fact[1]} {form.between if end == words else ''} {end}."
        return self._encode([(f" {text}" + [" ", "\n"][g.integers(2)], FACT)])

    def _filler(self, g: np.random.Generator, count: int, form: Form) -> Ids:
        """`[count]` tokens of real text, or of a few sentences again and again.

        Most of those sentences have the word that stands before an answer.
        """
        if g.random() < (0.3 if isinstance(form, Sentence) else 0.5):
            start = int(g.integers(0, len(self.stream) - count))
            return self.stream[start : start + count].astype(np.int64)
        some = [self._sentence(g, form) for _ in range(g.integers(2, 7))]
        ids, _ = self._encode([(" ".join(some) + [" ", "\n"][g.integers(2)], PLAIN)])
        return np.tile(ids, count // len(ids) + 1)[:count]

    def _sentence(self, g: np.random.Generator, form: Form) -> str:
        if isinstance(form, Sentence):
            return form.other(g, self.vocabulary)
        last = form.ask_between.split(" ")[-1].removesuffix(":")
        words = lambda: self.vocabulary.connector(g, 4)  # noqa: E731
        return f"{words()} {last if g.random() < 0.7 else ''} {words()}".strip().capitalize() + "."

    def _places(self, g: np.random.Generator, filler: Ids, count: int) -> list[int]:
        """Where facts stand in the filler, ascending: behind a sentence or a line."""
        wanted = np.sort(g.integers(0, len(filler) + 1, count))
        borders = np.flatnonzero(self.ends_sentence[filler]) + 1
        return [int(borders[np.abs(borders - p).argmin()]) if len(borders) else p for p in wanted]

    def _encode(self, pieces: Sequence[tuple[str, float]]) -> Part:
        """Token ids of the joined text; a token weighs what its last character weighs."""
        marks = np.repeat([w for _, w in pieces], [len(text) for text, _ in pieces])
        found = self.tokenizer.backend_tokenizer.encode(
            "".join(text for text, _ in pieces), add_special_tokens=False
        )
        last = np.array([end - 1 for _, end in found.offsets], np.int64)
        return np.array(found.ids, np.int64), marks[last].astype(np.float32)


def _plain(ids: Ids) -> Part:
    return ids, np.full(len(ids), PLAIN, np.float32)


def _joined(parts: Sequence[Part]) -> Part:
    ids, weights = zip(*parts, strict=True)
    return np.concatenate(ids), np.concatenate(weights)
