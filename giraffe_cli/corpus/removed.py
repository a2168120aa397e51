"""Training documents that are not packed, and why: `removed.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.corpus_index import CorpusIndex
from giraffe_cli.corpus.duplicates import first_of_equals
from giraffe_cli.corpus.pack import Int64
from giraffe_cli.corpus.rows import Strings
from giraffe_cli.corpus.store import REMOVED
from giraffe_cli.rundir import atomic_open


@dataclass(frozen=True)
class Removed:
    """Training documents that are not packed, and why."""

    candidates: list[int]
    """Documents of one id that are held out because no other was."""
    of_held: npt.NDArray[np.bool_]
    """[documents] true where the text is that of another document, which is held out."""
    contaminated: npt.NDArray[np.bool_]
    duplicate_of: npt.NDArray[np.int64]
    """[documents] the first document with the same text; its own number where it is the first."""
    dedupe: bool

    def mask(self) -> npt.NDArray[np.bool_]:
        """[documents] true where a document is left out."""
        out = self.contaminated | self.of_held
        if self.dedupe:
            out |= self.duplicate_of != np.arange(len(out))
        out[self.candidates] = True
        return out


def removed_from(index: CorpusIndex, config: PackConfig, candidates: list[int]) -> Removed:
    """What of the corpus is not packed, the `candidates` included."""
    held = {bytes.fromhex(text) for unit in index.units for text in unit["held_hashes"]}
    held |= {index.hashes[number].tobytes() for number in candidates}
    own = (index.hashes[number].tobytes() in held for number in range(len(index.hashes)))
    of_held = np.fromiter(own, dtype=bool, count=len(index.hashes))
    of_held[candidates] = False  # they are held out themselves
    first = _first_of_equals(index, config)
    return Removed(candidates, of_held, index.contaminated, first, dedupe=config.dedupe)


def _first_of_equals(index: CorpusIndex, config: PackConfig) -> Int64:
    """As `first_of_equals`, among the documents of sources that are taken at all."""
    weights = [config.mix.get(name, 1.0) for name in index.names]
    taken = np.flatnonzero(np.array(weights)[index.source] > 0)
    first = np.arange(len(index.hashes))
    first[taken] = taken[first_of_equals(index.hashes[taken])]
    return first


def write_removed(index: CorpusIndex, removed: Removed, stored: Strings, out: Path) -> None:
    """`removed.jsonl`, a line a document left out as a duplicate or contaminated; if any were."""
    duplicate = removed.duplicate_of != np.arange(len(removed.duplicate_of))
    gone = removed.contaminated | removed.of_held | (duplicate & removed.dedupe)
    gone[removed.candidates] = False
    if not gone.any():
        return
    with atomic_open(out / REMOVED) as handle:
        for number in np.flatnonzero(gone).tolist():
            reason = "shares 13-word runs with an evaluation text"
            if removed.of_held[number]:
                reason = "same text as a document held out"
            elif not removed.contaminated[number]:
                reason = f"same text as {stored[int(removed.duplicate_of[number])]}"
            value = {
                "id": stored[number],
                "source": index.names[int(index.source[number])],
                "tokens": int(index.lengths[number]),
                "reason": reason,
            }
            handle.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
