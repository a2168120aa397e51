"""The documents of a unit that are kept out of training: set apart as they are read."""

from __future__ import annotations

import json
from typing import IO, Any

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.duplicates import text_hash
from giraffe_cli.corpus.holdout import is_held_out, rank


class HeldOut:
    """Sets apart what no training sees, in `held.jsonl`."""

    def __init__(self, lines: IO[bytes], share: float, kept: str | None) -> None:
        """`share` of the ids is held out, but never the document `kept`."""
        self._lines, self._share, self._kept = lines, share, kept
        self.documents = 0
        self.hashes: list[str] = []
        """Of their texts, hexadecimal."""
        self.candidate: dict[str, Any] | None = None
        """The training documents of the lowest hash, as long as none is held out."""
        self._lowest: tuple[bytes, str] | None = None

    def takes(self, document: Document) -> bool:
        """Whether the document is held out; it is written if so."""
        if document.id != self._kept and is_held_out(document.id, self._share):
            self._lines.write(held_line(document))
            self.documents += 1
            self.hashes.append(text_hash(document.text).hex())
            self.candidate = self._lowest = None
            return True
        if self._share and not self.documents:
            self._consider(document)
        return False

    def _consider(self, document: Document) -> None:
        own = rank(document.id)
        if not self._lowest or own < self._lowest:
            self._lowest = own
            self.candidate = {"id": document.id, "rank": own[0].hex(), "lines": []}
        if self.candidate and own == self._lowest:
            self.candidate["lines"].append(held_line(document).decode())


def held_line(document: Document) -> bytes:
    """A document as one line of `held.jsonl`."""
    value = {"id": document.id, "text": document.text, "source": document.source}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"
