"""Text → token ids, nothing around them, by `tokenizers` or, where it is proven, `fastokens`.

fastokens reads the same `tokenizer.json` and is about sixty times as fast (30 MB of books: 0.21
against 13 CPU-seconds), but it is another program. So it is used only as long as it gives the ids
that `tokenizers` gives, on

1. a fixed set of texts that implementations disagree on (`EDGES`, and the special tokens in text),
2. the beginning of the first documents of every unit of the corpus,
3. about 1 % of every unit, picked by the hash of the document and compared in its place.

    Proven(reference, fast).encode(texts, keys) → ids, or raises `Disagreement`

What is compared depends on the unit alone, so any number of workers comes to the same verdict.
Either is given long texts in parts, where the tokenizer is known to allow it (`cuts.py`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.cuts import Span, cuts_of
from giraffe_cli.corpus.text_parts import check_memory, in_parts

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

FIRST_DOCUMENTS = 8
"""Documents of a unit that are compared whatever their hash."""
PIECE_CHARACTERS = 1 << 12
"""What is compared at a time; 4,096 characters cost `tokenizers` about 2 ms."""
ONE_IN = 100
"""The share of pieces that is compared."""
CUT_CHARACTERS = 64
"""On either side of a cut, by which it is tried."""
EDGE_TOKENS = 16
"""Tokens at a cut edge of a piece that may differ from those of the whole document."""

EDGES = (
    "",
    " ",
    "   leading and trailing   ",
    "\n",
    "\r\n\r\nline\r\rends\n\n\n",
    "tab\t\ttab \t mixed \x0b\x0c\x85\u2028\u2029",
    "nul \x00 and \x01\x1f\x7f controls",
    "no-break\xa0space\u202f\u3000\u200b\ufeff",
    "a" * 5000,
    "ab" * 2500 + "!" * 300 + "0123456789" * 30,
    "I'm you're THEY'LL we'd it's 'twas can't've don\u2019t",
    "3.14159 1,000,000 1e-9 0x7f ½ ² １２３４５ ٣٤٥ 一二三",
    "e\u0301 é ﬁ Å ǆ ß ẞ İ ı ſ K",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️ ☃",
    "日本語のテキスト、漢字かな交じり文。한국어 العربية עברית हिन्दी ไทย",
    "\U0001f9ff\U00020000\U0010fffd\ud7ff\ufffd",
    "snake_case camelCase HTTPServer __init__ a.b->c::d //path\\to #!/bin/sh",
    "def f(x):\n    return {\n\t\t'k': [x**2, ~x, x<<1],  # ünïcode\n    }\n",
    "<s></s><|endoftext|><unk>[INST]<|begin|> <0x0A> \u2581under ▁▁",
    "</",
)
"""What implementations of the same tokenizer have disagreed on."""


class Backend(Protocol):
    """A tokenizer without its special tokens, truncation and padding."""

    name: str
    """Library and version, such as `tokenizers 0.23.3`."""

    def encode(self, texts: list[str]) -> tuple[UInt32, Int64]:
        """All ids end to end, and [texts + 1] where each text's begin."""


class Disagreement(Exception):
    """Another backend gave other ids than the reference; the message says where."""


class HfBackend:
    """The reference. Its encodings take about 120 bytes for each of a text while they live."""

    def __init__(self, tokenizer: Any) -> None:
        self.name = f"tokenizers {importlib.metadata.version('tokenizers')}"
        self.tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._cuts = cuts_of(tokenizer)

    def encode(self, texts: list[str]) -> tuple[UInt32, Int64]:
        """As `Backend`.

        Raises:
            GiraffeError: a text that cannot be cut, and takes more memory than there is.
        """
        return in_parts(self._encode, texts, self.spans)

    def spans(self, text: str) -> list[Span]:
        """Where the parts of `text` begin and end whose ids, end to end, are its own.

        Every cut is tried on what is beside it; if one fails, or none is known, it is one part.
        """
        spans = list(self._cuts.spans(text)) if self._cuts else []
        joined = (self._joins(text, a[1], b[0]) for a, b in itertools.pairwise(spans))
        return spans if spans and all(joined) else [(0, len(text))]

    def character_of(self, text: str, token: int) -> int:
        """Where in `text` its token number `token` begins; its length where it has no such."""
        for start, end in self.spans(text):
            offsets = self.tokenizer.encode(text[start:end], add_special_tokens=False).offsets
            if token < len(offsets):
                return start + int(offsets[token][0])
            token -= len(offsets)
        return len(text)

    def _joins(self, text: str, end: int, start: int) -> bool:
        """Whether what ends at `end` and what begins at `start` have the ids of both together."""
        first, last = max(0, end - CUT_CHARACTERS), start + CUT_CHARACTERS
        whole, _ = self._encode([text[first:last]])
        return np.array_equal(whole, self._encode([text[first:end], text[start:last]])[0])

    def _encode(self, texts: list[str]) -> tuple[UInt32, Int64]:
        check_memory(texts)
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
        offsets = np.zeros(len(parts) + 1, dtype=np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return np.concatenate([*parts, np.empty(0, dtype=np.uint32)]), offsets


class FastBackend:
    """fastokens: two buffers, no Python integer in between.

    Raises:
        Disagreement: it does not take this tokenizer.
    """

    def __init__(self, path: Path) -> None:
        # With more threads it keeps every word it has ever seen (300 MB of random words: +230 MB
        # against +100 MB with one), and workers are what uses more cores. Read on first use.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        # `fastokens` itself imports what patches transformers.
        from fastokens._native import Tokenizer

        self.name = f"fastokens {importlib.metadata.version('fastokens')}"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise Disagreement(f"{self.name} cannot read {path}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: list[str]) -> tuple[UInt32, Int64]:
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(texts)
        except BaseException as error:
            # A panic in Rust is no Exception.
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise Disagreement(f"{self.name} fails: {error}") from error
            raise
        return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<i8")


class Proven:
    """`fast`, as long as it agrees with `reference`."""

    def __init__(self, reference: HfBackend, fast: Backend) -> None:
        """Compare them on the fixed texts.

        Raises:
            Disagreement: they differ.
        """
        self.name = fast.name
        self._reference, self._fast = reference, fast
        self.compared = 0
        """Characters that both have tokenised."""
        texts = [*EDGES, *_around_specials(reference.tokenizer)]
        ids, offsets = fast.encode(texts)
        for number, text in enumerate(texts):
            self._compare(text, ids[offsets[number] : offsets[number + 1]], 0, len(text))

    def encode(
        self, texts: list[str], keys: list[bytes], names: list[str], before: int
    ) -> tuple[UInt32, Int64]:
        """Ids of whole documents of one unit, of which `before` were encoded earlier.

        Args:
            keys: a hash of each text; it decides what is compared.
            names: what to call each in the message.

        Raises:
            Disagreement: a comparison failed.
        """
        ids, offsets = in_parts(self._fast.encode, texts, self._reference.spans)
        for number, (text, key) in enumerate(zip(texts, keys, strict=True)):
            own = ids[offsets[number] : offsets[number + 1]]
            for start in pieces(len(text), key, before + number < FIRST_DOCUMENTS):
                try:
                    self._compare(text, own, start, start + PIECE_CHARACTERS)
                except Disagreement as error:
                    raise Disagreement(f"{error} of {names[number]}") from error
        return ids, offsets

    def _compare(self, text: str, ids: UInt32, start: int, end: int) -> None:
        """Characters `start` to `end` of `text`, whose ids are `ids`, in their place.

        A cut edge may fall into a token, so the tokens beside it are left out. If what remains is
        not among `ids`, the whole text decides.
        """
        piece = text[start:end]
        self.compared += len(piece)
        expected = self._reference.encode([piece])[0]
        if start == 0 and end >= len(text):
            self._judge(text, ids, expected)
            return
        first = EDGE_TOKENS if start else 0
        last = len(expected) - (EDGE_TOKENS if end < len(text) else 0)
        inner = expected[first:last]
        agrees = _holds(ids, inner) if start else np.array_equal(ids[:last], inner)
        if not agrees:
            self.compared += len(text)
            self._judge(text, ids, self._reference.encode([text])[0])

    def _judge(self, text: str, ids: UInt32, expected: UInt32) -> None:
        if np.array_equal(ids, expected):
            return
        common = min(len(ids), len(expected))
        differing = np.flatnonzero(ids[:common] != expected[:common])
        token = int(differing[0]) if len(differing) else common
        at = self._reference.character_of(text, token)
        raise Disagreement(
            f"{self.name} gives other ids than {self._reference.name} "
            f"at character {at} ({text[at : at + 20]!r})"
        )


def pieces(characters: int, key: bytes, first: bool) -> Iterator[int]:
    """Where the pieces begin that are compared: one in 100 by `key`, and the beginning if `first`.

    A text of up to 4,096 characters is one piece.
    """
    count = max(1, -(-characters // PIECE_CHARACTERS))
    picked = range(-int.from_bytes(key[:8], "big") % ONE_IN, count, ONE_IN)
    if first and 0 not in picked:
        yield 0
    yield from (PIECE_CHARACTERS * number for number in picked)


def is_installed() -> bool:
    """Whether fastokens is there (extra `[fast]`)."""
    return importlib.util.find_spec("fastokens") is not None


def _holds(ids: UInt32, inner: UInt32) -> bool:
    """Whether `inner` is a run inside `ids`."""
    where, sought = ids.tobytes(), inner.tobytes()
    at = where.find(sought)
    while at % 4 and at >= 0:
        at = where.find(sought, at + 1)
    return at >= 0


def _around_specials(tokenizer: Any) -> list[str]:
    """The tokenizer's own added tokens inside text; of hundreds, the first and the last."""
    contents = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if len(contents) > 32:
        contents = contents[:16] + contents[-16:]
    return [f"a{content}b {content} {content}{content}\n{content}" for content in contents]
