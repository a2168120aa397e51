"""Duplicates, by a 16-byte hash of each text: the first of equal documents stays.

Texts are equal that differ in white space alone, or in how Unicode writes an accent (NFC).

Two different texts share a hash with a probability below 1e-24 for a million documents (birthday
bound of 2^128). Cost: one sort of the hashes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.pack import Int64

HASH_BYTES = 16
CHUNK_CHARACTERS = 1 << 16
"""The least length of what is folded at a time."""
STARTS = re.compile("[\x00-\u02ff\u3400-\u4db5\u4e00-\u9fa5\uac00-\ud7a3]")
"""Characters that compose with none before them: most of Latin, Chinese and Korean."""


def text_hash(text: str) -> bytes:
    """What tells equal texts, `HASH_BYTES` bytes: sha256 of the words in NFC, a space between two.

    A chunk at a time: the words of a long text, one object each, would take many times its size.
    """
    hasher = hashlib.sha256()
    for folded in _folded(text):
        hasher.update(folded.encode("utf-8", "surrogatepass"))
    return hasher.digest()[:HASH_BYTES]


def _folded(text: str) -> Iterator[str]:
    """`" ".join(unicodedata.normalize("NFC", text).split())`, piece by piece."""
    begun = white = False
    for chunk in _composed(text):
        if words := chunk.split():
            yield " " * (begun and (white or chunk[0].isspace())) + " ".join(words)
            begun = True
        white = chunk[-1:].isspace()


def _composed(text: str) -> Iterator[str]:
    """`text` in NFC, cut before characters that nothing before them can change."""
    start = 0
    while match := STARTS.search(text, start + CHUNK_CHARACTERS):
        yield unicodedata.normalize("NFC", text[start : match.start()])
        start = match.start()
    yield unicodedata.normalize("NFC", text[start:])


def first_of_equals(hashes: npt.NDArray[np.uint8]) -> Int64:
    """[documents] the number of the first document with the same text; its own where it is first.

    Args:
        hashes: [documents, 16].

    Example: texts a, b, a → [0, 1, 0].
    """
    count = len(hashes)
    halves = np.ascontiguousarray(hashes).view(np.uint64).reshape(count, 2)
    # Equal hashes lie side by side, and within a group in the order of the documents: lexsort is
    # stable.
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    begins = np.ones(count, dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(begins)
    first = np.empty(count, dtype=np.int64)
    first[order] = np.repeat(order[starts], np.diff(np.append(starts, count)))
    return first


def duplicates_report(
    first: Int64, of_held: npt.NDArray[np.bool_], lengths: Int64, removed: bool
) -> dict[str, Any]:
    """`stats.json` → `duplicates`: how many documents and tokens repeat an earlier document, and
    how many the text of one that is held out, which are always removed."""
    later = (first != np.arange(len(first))) & ~of_held
    return {
        "documents": int(later.sum()),
        "tokens": int(lengths[later].sum()),
        "removed": removed,
        "documents_of_held_out": int(of_held.sum()),
        "tokens_of_held_out": int(lengths[of_held].sum()),
    }
