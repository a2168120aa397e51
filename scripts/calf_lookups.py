"""Windows of look-ups that calf learns from: facts, and questions about them, in made-up forms.

Four kinds, one a window, all drawn by a generator:

    repeat   tokens drawn at random, again and again: every token of a repetition is an answer
    pairs    records of a few such tokens, key, gap and value: a key seen before has its old value
    dense    records and nothing else, then questions about them
    hidden   a few facts in real text or in sentences that repeat, then questions about them

The package's `corpus/lookup_forms.py` and `calf_forms.py` make the words of the last two. Tokens of
an answer weigh 1 (times a factor that the training chooses), what cannot be known weighs little. A
window of 1,024 tokens takes about two milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from calf_forms import (
    ANSWER,
    ASKED,
    FACT,
    PLAIN,
    SHORT_KEYS,
    SHORT_VALUES,
    Clause,
    quoted,
    weighed,
)
from transformers import PreTrainedTokenizerFast

from giraffe_cli.corpus.lookup_forms import Form, Sentence, Template, written
from giraffe_cli.corpus.lookup_words import (
    KEYS,
    VALUES,
    Draw,
    Vocabulary,
    frequent_words,
    numbers,
)

Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]
Part = tuple[Ids, Weights]

KINDS = ("repeat", "pairs", *("dense",) * 5, *("hidden",) * 5)


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
        share = 1.0 if left <= 160 or g.random() < 0.3 else g.uniform(0.3, 1.0)
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
        form = self._record_form(g, far)
        words = [0, 0, 0, 0, 0, room // 50, room // 25][g.integers(7)]
        lead = (
            f"{self.vocabulary.connector(g, words)}:\n" if words else ["", "{", "["][g.integers(3)]
        )
        share = room * g.uniform(0.25, 0.9)
        if g.random() < 0.3:
            share *= g.uniform(0.2, 1.0)
        facts, each = self._records(g, form, room, share)
        told = [form.fact(*fact) + form.separator for fact in facts]
        ends = np.cumsum([len(lead), *map(len, told)])[1:]
        fit = int((self._ends(lead + "".join(told), ends) < share).sum())
        facts = facts[: max(1, fit)]
        records = self._encode([(lead + "".join(told[: len(facts)]), FACT)])
        pieces = [(["\n", "\n\n", "}\n", "]\n"][g.integers(4)], FACT)]
        # Every key once, in any order: a second answer could be copied from the first one.
        most = 2 + int((room - len(records[0])) / (0.6 * each))
        for which in g.permutation(len(facts))[:most]:
            pieces += weighed(form.question(*facts[which]))
        ids, weights = _joined([records, self._encode(pieces)])
        return ids[:room], weights[:room]

    def _record_form(self, g: np.random.Generator, far: int) -> Form | Template:
        kind = g.random()
        if kind < 0.4:
            return quoted(g, self.vocabulary)
        if kind < 0.55:
            return written(g)
        if kind < 0.7:
            return Clause(g, self.vocabulary)
        return Form(g, self.vocabulary, int(g.integers(2, far + 1)))

    def _records(
        self, g: np.random.Generator, form: Form | Template, room: int, share: float
    ) -> tuple[list[tuple[str, str]], float]:
        """Facts of about `share` tokens or more, and the mean tokens of a record."""
        keys, values = self._kinds(g, room)
        some = list({keys(g): values(g) for _ in range(3)}.items())
        text = "".join(form.fact(*fact) + form.separator for fact in some)
        each = len(self._encode([(text, FACT)])[0]) / len(some)
        most = min(int(1.2 * share / each) + 2, room // 5 + 1)
        count = min(most, int(g.integers(1, 60))) if g.random() < 0.4 else most
        facts = dict(some)
        facts |= {keys(g): values(g) for _ in range(count - len(some))}
        return list(facts.items())[: max(1, count)], each

    def _ends(self, text: str, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`[len(places)]`: how many tokens of `text` begin before each of its `places`."""
        found = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return np.searchsorted([begin for begin, _ in found.offsets], places)

    def _hidden(self, g: np.random.Generator, room: int, far: int) -> Part:
        """About `room` tokens: facts between sentences of other text, questions at the end."""
        form, facts = self._few(g, room, far)
        twice = g.random() < 0.3
        told = [self._told(g, form, fact, twice) for fact in facts]
        head = self.vocabulary.connector(g, room // 30) if g.random() < 0.5 else ""
        if head and g.random() < 0.5:  # words of the form where no fact is
            head = f"{form.ask_before} {head} {form.between}"
        asked = [(" \n", FACT)]
        for which in g.permutation(len(facts))[:4]:
            asked += weighed(form.question(*facts[which]))
        begin, end = self._encode([(f"{head}.\n" if head else "", FACT)]), self._encode(asked)
        spare = max(8, room - sum(len(part[0]) for part in (begin, end, *told)))
        filler, parts, at = self._filler(g, spare, form), [begin], 0
        for number, place in enumerate(self._places(g, filler, len(told))):
            parts += [_plain(filler[at:place]), told[number]]
            at = place
        return _joined([*parts, _plain(filler[at:]), end])

    def _few(
        self, g: np.random.Generator, room: int, far: int
    ) -> tuple[Form, list[tuple[str, str]]]:
        """A form for facts that are hidden, and one to about ten of them, no key twice."""
        kind, count = g.random(), 1
        if g.random() < 0.5:
            count = int(g.integers(2, 3 + room // 100))
        key, value = self._kinds(g, room)
        form = Form(g, self.vocabulary, far)
        if kind < 0.65:
            form = (Sentence if kind < 0.3 else Clause)(g, self.vocabulary)
            value = numbers(g) if g.random() < 0.7 else value
        if isinstance(form, Sentence):
            key = self.vocabulary.joined(" ", 3)
        return form, list({key(g): value(g) for _ in range(count)}.items())

    def _kinds(self, g: np.random.Generator, room: int) -> tuple[Draw, Draw]:
        """What draws keys, of one kind, and what draws values."""
        keys, values = (SHORT_KEYS, SHORT_VALUES) if room <= 260 else (KEYS, VALUES)
        return self.vocabulary.drawn(g, keys), self.vocabulary.drawn(g, values)

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
