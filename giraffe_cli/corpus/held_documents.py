"""The documents of a unit that are kept out of training: set apart as they are read.

Texts go to files at once, a piece at a time; ids and hashes alone are kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.duplicates import text_hash
from giraffe_cli.corpus.holdout import is_held_out, rank

PIECE_CHARACTERS = 1 << 20
"""Of a text that are written at a time."""


class HeldOut:
    """Sets apart what no training sees, in `held.jsonl`."""

    def __init__(
        self, lines: IO[bytes], candidates: IO[bytes], share: float, kept: str | None
    ) -> None:
        """`share` of the ids is held out, but never the document `kept`."""
        self._lines, self._candidates = lines, candidates
        self._share, self._kept = share, kept
        self.documents = 0
        self.hashes: list[str] = []
        """Of their texts, hexadecimal."""
        self.candidate: dict[str, Any] | None = None
        """`rank`, `id` and `count` of the training documents of the lowest hash, as long as none is
        held out; they are what lies in `candidates`, which is empty else."""
        self._lowest: tuple[bytes, str] | None = None

    def takes(self, document: Document) -> bool:
        """Whether the document is held out; it is written if so."""
        if document.id != self._kept and is_held_out(document.id, self._share):
            self._lines.writelines(held_line(document))
            self.documents += 1
            self.hashes.append(text_hash(document.text).hex())
            self._forget()
            return True
        if self._share and not self.documents:
            self._consider(document)
        return False

    def _consider(self, document: Document) -> None:
        own = rank(document.id)
        if not self._lowest or own < self._lowest:
            self._forget()
            self._lowest = own
            self.candidate = {"id": document.id, "rank": own[0].hex(), "count": 0}
        if self.candidate and own == self._lowest:
            self._candidates.writelines(held_line(document))
            self.candidate["count"] += 1

    def _forget(self) -> None:
        """Take back what was written of a candidate that is none any more."""
        if self.candidate:
            self._candidates.seek(0)
            self._candidates.truncate()
        self.candidate = self._lowest = None


def held_line(document: Document) -> Iterator[bytes]:
    """A document as one line of `held.jsonl`, in pieces: `{"id": …, "text": …, "source": …}`."""
    yield f'{{"id": {_quoted(document.id)}, "text": "'.encode()
    for start in range(0, len(document.text), PIECE_CHARACTERS):
        yield _quoted(document.text[start : start + PIECE_CHARACTERS])[1:-1].encode()
    yield f'", "source": {_quoted(document.source)}}}\n'.encode()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
