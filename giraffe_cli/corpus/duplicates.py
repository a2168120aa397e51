"""Duplicates, by a 16-byte hash of each text: the first of equal documents stays.

Texts are equal that differ in white space alone, or in how Unicode writes an accent (NFC).

Two different texts share a hash with a probability below 1e-24 for a million documents (birthday
bound of 2^128). Cost: one sort of the hashes.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.pack import Int64

HASH_BYTES = 16


def text_hash(text: str) -> bytes:
    """What tells equal texts, `HASH_BYTES` bytes."""
    folded = " ".join(unicodedata.normalize("NFC", text).split())
    return hashlib.sha256(folded.encode("utf-8", "surrogatepass")).digest()[:HASH_BYTES]


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
