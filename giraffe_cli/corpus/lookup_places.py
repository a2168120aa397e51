"""Where in a piece of token ids a sentence may be put, and its tokens there.

    places.of(ids)                              # [12, 31, …]: behind ids[11] a sentence ends
    places.encode("The hut is 4717.", ids, 12)  # with the space, or the line break, it needs there

Both go by tables over the vocabulary, made once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.rows import Int32
from giraffe_cli.corpus.token_bytes import bytes_of, is_text
from giraffe_cli.corpus.tokens import DocumentTokenizer

ENDS = tuple(".!?…")
FULL_WIDTH_ENDS = tuple("。！？")
"""No space follows them."""
CLOSING = "\"'”’)]»"
SPACES = ("Ġ", "▁")
"""What a token begins with that a space stands before: byte-level, and SentencePiece."""


class Places:
    """Ends of sentences and lines, by the vocabulary of a tokenizer."""

    def __init__(self, tokenize: DocumentTokenizer) -> None:
        self._tokenizer, self._bos, self._eos = tokenize.tokenizer, tokenize.bos, tokenize.eos
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        texts = self._tokenizer.decode_batch([[n] for n in range(size)], skip_special_tokens=False)
        raw = [self._tokenizer.id_to_token(n) or "" for n in range(size)]
        bare = [text.rstrip(CLOSING) for text in texts]
        self._ends_line = _marked(text.endswith("\n") for text in texts)
        self._ends_wide = _marked(text.endswith(FULL_WIDTH_ENDS) for text in bare)
        self._ends = _marked(text.endswith(ENDS) for text in bare)
        self._closes = _marked(bool(text) and not text.strip(CLOSING) for text in texts)
        begins = [
            token.startswith(SPACES) or text[:1].isspace()
            for token, text in zip(raw, texts, strict=True)
        ]
        if not any(token.startswith(SPACES) for token in raw):  # as WordPiece: parts are marked
            begins = [not token.startswith("##") for token in raw]
        self._begins_word = _marked(begins)
        first = self._tokenizer.encode("x", add_special_tokens=False).tokens[:1]
        held = bytes_of(raw)
        self._continues = _marked(0x80 <= one[0] < 0xC0 if one else False for one in held)
        """Whether a token begins within a character."""
        self._is_whole = _marked(one is None or is_text(one) for one in held)
        self._adds_space = bool(first) and first[0].startswith(SPACES)

    def of(self, ids: Int32) -> list[int]:
        """Places, ascending; where no sentence ends, before any word, or anywhere but within a
        character. None lies before BOS or behind EOS."""
        first = int(ids[0] == self._bos)
        last = self._end(ids) if self.is_open(ids) else len(ids) - 1
        whole = ~self._continues[ids[1:]]
        ends, begins = self._ends[ids], self._begins_word[ids]
        ends[1:] |= self._closes[ids[1:]] & self._ends[ids[:-1]]
        is_end = self._ends_line[ids[:-1]] | self._ends_wide[ids[:-1]] | (ends[:-1] & begins[1:])
        for found in (is_end, begins[1:], whole):
            places = np.flatnonzero(found & whole) + 1
            places = places[(places > first) & (places < last)]
            if len(places):
                return [*places.tolist(), last]
        return []

    def _end(self, ids: Int32) -> int:
        """Behind the last character of a piece that another one goes on from, which may be cut
        within one."""
        if self._is_whole[ids[-1]]:
            return len(ids)
        begun = np.flatnonzero(~self._continues[ids])
        return int(begun[-1]) if len(begun) else 0

    def is_open(self, ids: Int32) -> bool:
        """Whether `ids` do not end with EOS."""
        return bool(ids[-1] != self._eos)

    def encode(self, text: str, ids: Int32, place: int) -> list[int]:
        """Tokens of a sentence that stands at `place` of `ids`: a line where a line ends."""
        if self._ends_line[ids[place - 1]]:
            return self._encode(f"{text}\n")
        return self._encode(text if self._adds_space else f" {text}")

    def encode_apart(self, text: str) -> list[int]:
        """Tokens of a paragraph."""
        return self._encode(f"\n\n{text.strip()}\n\n")

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _marked(tokens: Iterable[bool]) -> npt.NDArray[np.bool_]:
    return np.fromiter(tokens, dtype=bool)
