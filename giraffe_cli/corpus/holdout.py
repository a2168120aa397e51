"""Which documents are kept out of training: by the hash of their id alone.

So a growing corpus keeps its split, a document that two sources hold under one id stays on one
side, and a process that sees a part of the corpus decides as one that sees all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection


def rank(identity: str) -> tuple[bytes, str]:
    """Where an id stands; the lowest are held out first."""
    return hashlib.sha256(identity.encode()).digest(), identity


def is_held_out(identity: str, share: float) -> bool:
    """Whether the id's hash lies in the lowest `share` of its range."""
    return int.from_bytes(rank(identity)[0][:8], "big") < int(share * 2**64)


def choose_held_out(ids: Collection[str], share: float) -> frozenset[str]:
    """The ids kept out of training.

    At least one of two or more is held out when `share` > 0, and at least one is not.
    """
    if share == 0 or len(ids) < 2:
        return frozenset()
    ranked = sorted(rank(identity) for identity in ids)
    below = sum(is_held_out(identity, share) for _, identity in ranked)
    count = min(max(below, 1), len(ranked) - 1)
    return frozenset(identity for _, identity in ranked[:count])
