"""Document lengths → windows of token pieces. Pure arithmetic: no text, no files, no randomness.

    plan([6, 3, 2, 1], window=4)
    best-fit → [(0, 0, 4)], [(1, 0, 3), (3, 0, 1)], [(0, 4, 2), (2, 0, 2)]
    concat   → [(0, 0, 4)], [(0, 4, 2), (1, 0, 2)], [(1, 2, 1), (2, 0, 2), (3, 0, 1)]
    one      → [(0, 0, 4)], [(0, 4, 2)], [(1, 0, 3)], [(2, 0, 2)], [(3, 0, 1)]
      as (document, start, length)

best-fit  A document longer than the window is cut into whole windows and a remainder; no other is
          ever cut. Pieces are then placed best-fit decreasing: each into the fullest window that
          still holds it.
concat    Documents end to end in their order, cut wherever a window is full; only the last window
          is short.
one       One document a window, the longer ones over several; `drop_tail` keeps only their first.

Every token lands in exactly one window, except pieces shorter than `min_piece` and dropped tails,
which are counted, and the `overlap` tokens that each further piece of a long document repeats.
Cost: O(n log n) for n pieces; 1 M documents take about a second.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Rule = Literal["best-fit", "concat", "one"]


class Piece(NamedTuple):
    """`length` tokens of document number `document`, from its token `start` on."""

    document: int
    start: int
    length: int


@dataclass(frozen=True)
class Plan:
    """Which tokens go into which window; row w holds pieces `offsets[w]` to `offsets[w + 1]`."""

    window: int
    """Capacity in tokens."""
    document: Int64
    """[pieces] document number of each piece."""
    start: Int64
    """[pieces] first token of the piece within its document."""
    length: Int64
    """[pieces] tokens."""
    offsets: Int64
    """[windows + 1] piece numbers."""
    dropped_tokens: int
    """Tokens in pieces shorter than `min_piece`, in dropped tails and in windows without target."""
    dropped_pieces: int
    """Number of those pieces."""
    repeated_tokens: int = 0
    """Tokens stored a second time by the overlap of pieces."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[list[Piece]]:
        return (self.pieces(index) for index in range(len(self)))

    def pieces(self, index: int) -> list[Piece]:
        """The pieces of window `index`, longest first."""
        return [
            Piece(int(self.document[k]), int(self.start[k]), int(self.length[k]))
            for k in range(int(self.offsets[index]), int(self.offsets[index + 1]))
        ]

    @property
    def kept_tokens(self) -> int:
        """Tokens of the documents that lie in windows, each counted once."""
        return int(self.length.sum()) - self.repeated_tokens

    @property
    def padding(self) -> int:
        """Tokens by which the windows fall short of full; none of it is stored."""
        return len(self) * self.window - int(self.length.sum())

    def shuffled(self, seed: int) -> Plan:
        """The same windows in an order drawn from `seed`, so that long and short ones mix."""
        order = np.random.default_rng(seed).permutation(len(self))
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        # The j-th piece of new window w is the j-th piece of old window order[w].
        picked = np.arange(offsets[-1]) + np.repeat(self.offsets[order] - offsets[:-1], counts)
        return replace(
            self,
            document=self.document[picked],
            start=self.start[picked],
            length=self.length[picked],
            offsets=offsets,
        )


def plan(
    lengths: Sequence[int] | Int64,
    window: int,
    min_piece: int = 1,
    rule: Rule = "best-fit",
    overlap: int = 0,
    drop_tail: bool = False,
) -> Plan:
    """Windows of at most `window` tokens for documents of `lengths` tokens.

    Deterministic: equal pieces keep the order of their documents. `overlap` tokens are repeated
    where a document longer than the window is cut (not under `concat`, which cuts anywhere).
    `concat` applies `min_piece` to whole documents, since its stream has no gaps.
    """
    assert 1 <= min_piece <= window
    assert 0 <= overlap < window
    tokens = np.asarray(lengths, dtype=np.int64)
    if rule == "concat":
        assert not overlap
        return _concat(tokens, window, min_piece)
    document, start, length = cut(tokens, window, overlap)
    kept = length >= min_piece
    if drop_tail:
        assert rule == "one"
        kept &= start == 0
    # What a later piece repeats of the one before it is neither dropped nor kept twice.
    repeats = np.where(start > 0, overlap, 0)
    dropped = int((length - repeats)[~kept].sum())
    repeated, pieces_dropped = int(repeats[kept].sum()), int((~kept).sum())
    document, start, length = document[kept], start[kept], length[kept]
    if rule == "one":
        offsets = np.arange(len(document) + 1)
        return Plan(window, document, start, length, offsets, dropped, pieces_dropped, repeated)
    order = np.argsort(-length, kind="stable")
    bins = best_fit(length[order], window)
    by_window = order[np.argsort(bins, kind="stable")]
    counts = np.bincount(bins, minlength=int(bins.max(initial=-1)) + 1)
    return Plan(
        window,
        document[by_window],
        start[by_window],
        length[by_window],
        _offsets(counts),
        dropped,
        pieces_dropped,
        repeated,
    )


def with_targets(found: Plan) -> Plan:
    """`found` without windows whose pieces are all of one token, and so have no target."""
    counts = np.diff(found.offsets)
    window_of = np.repeat(np.arange(len(found)), counts)
    tokens = np.bincount(window_of, weights=found.length, minlength=len(found)).astype(np.int64)
    has_target = tokens > counts
    if has_target.all():
        return found
    kept = has_target[window_of]
    gone = int((~kept).sum())
    return replace(
        found,
        document=found.document[kept],
        start=found.start[kept],
        length=found.length[kept],
        offsets=_offsets(counts[has_target]),
        dropped_tokens=found.dropped_tokens + gone,
        dropped_pieces=found.dropped_pieces + gone,
    )


def join(plans: Sequence[Plan]) -> Plan:
    """The windows of several plans over the same documents, one plan after the other."""
    first, *others = plans
    if not others:
        return first
    pieces = np.cumsum([0, *(len(each.document) for each in plans)])
    ends = [each.offsets[1:] + before for each, before in zip(plans, pieces, strict=False)]
    return Plan(
        first.window,
        np.concatenate([each.document for each in plans]),
        np.concatenate([each.start for each in plans]),
        np.concatenate([each.length for each in plans]),
        np.concatenate([[0], *ends]).astype(np.int64),
        sum(each.dropped_tokens for each in plans),
        sum(each.dropped_pieces for each in plans),
        sum(each.repeated_tokens for each in plans),
    )


def cut(lengths: Int64, window: int, overlap: int = 0) -> tuple[Int64, Int64, Int64]:
    """Document number, start and length of every piece; only documents over `window` have two.

    Pieces start every `window - overlap` tokens, and the last ends with its document.
    """
    stride = window - overlap
    counts = np.where(lengths > 0, 1 + np.maximum(0, -(-(lengths - window) // stride)), 0)
    document = np.repeat(np.arange(len(lengths)), counts)
    firsts = np.cumsum(counts) - counts
    start = (np.arange(len(document)) - np.repeat(firsts, counts)) * stride
    return document, start, np.minimum(lengths[document] - start, window)


def _concat(lengths: Int64, window: int, min_piece: int) -> Plan:
    """The stream of all documents of `min_piece` tokens or more, cut every `window` tokens."""
    short = (lengths > 0) & (lengths < min_piece)
    streamed = np.where(short, 0, lengths)
    ends = np.cumsum(streamed)
    total = int(streamed.sum())
    borders = np.unique(np.concatenate([[0], ends, np.arange(0, total, window), [total]]))
    begin = borders[:-1]
    # The document of a piece is the first that ends behind the piece's begin.
    document = np.searchsorted(ends, begin, side="right")
    start = begin - (ends - streamed)[document]
    counts = np.bincount(begin // window, minlength=0)
    return Plan(
        window,
        document,
        start,
        np.diff(borders),
        _offsets(counts),
        int(lengths[short].sum()),
        int(short.sum()),
    )


def _offsets(counts: Int64) -> Int64:
    """[2, 1] → [0, 2, 3]."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def best_fit(lengths: Sequence[int] | Int64, window: int) -> Int64:
    """The window number of each piece; `lengths` must not increase.

    Open windows wait in one list for each remaining capacity; `capacities` holds the sorted
    capacities whose list is not empty, so that the tightest fit is one bisection.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    assert sizes.max(initial=0) <= window
    waiting: dict[int, list[int]] = {}
    capacities: list[int] = []
    placed = np.empty(len(sizes), dtype=np.int64)
    opened = 0
    for index, length in enumerate(_python_integers(sizes)):
        at = bisect.bisect_left(capacities, length)
        if at == len(capacities):
            number, capacity = opened, window
            opened += 1
        else:
            capacity = capacities[at]
            number = waiting[capacity].pop()
            if not waiting[capacity]:
                del capacities[at]
        placed[index] = number
        left = capacity - length
        if left:
            windows = waiting.setdefault(left, [])
            if not windows:
                bisect.insort(capacities, left)
            windows.append(number)
    return placed


def _python_integers(values: Int64) -> Iterator[int]:
    """Python integers a few at a time: a million of them at once would take 40 MB."""
    for at in range(0, len(values), 1 << 16):
        yield from values[at : at + (1 << 16)].tolist()
