"""What lies in packed windows: how full they are, and three of them as text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from giraffe_cli.corpus.pack import Int64
from giraffe_cli.corpus.rows import shard_name
from giraffe_cli.corpus.store import PackedRows
from giraffe_cli.errors import InvalidInput

SHOWN_WINDOWS = 3
SHOWN_PIECES = 8
"""Pieces of a window that are shown as text; a window of short documents has hundreds."""
ENDS = 48
"""Tokens shown of a piece's head, and of its tail."""
CHARACTERS = 400
"""Most characters of a head or tail: a token may be a long run of spaces."""
STRIP = 1000
"""Steps across a window's strip; what is thinner is not drawn."""

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Control characters, and those that turn the direction of the text around them."""


class Segment(NamedTuple):
    """A piece on a window's strip, in percent of the window."""

    x: float
    width: float


@dataclass(frozen=True)
class ShownPiece:
    """A piece as text."""

    document: str
    tokens: int
    head: str
    hidden: int
    """Tokens between head and tail."""
    tail: str


@dataclass(frozen=True)
class ShownWindow:
    """A window as text."""

    number: int
    tokens: int
    segments: list[Segment]
    pieces: list[ShownPiece]
    more: int
    """Pieces that are not shown."""


def fills(rows: PackedRows) -> tuple[Int64, Int64]:
    """[windows] tokens and [windows] pieces of each window; reads the lengths of pieces alone."""
    sums = []
    for shard in range(-(-rows.layout.rows // rows.layout.rows_per_shard)):
        file = pq.ParquetFile(rows.folder / shard_name(shard))
        for group in range(file.num_row_groups):
            sums.append(_row_sums(file.read_row_group(group, columns=["seq_lengths"])))
    tokens, pieces = (np.concatenate(parts) for parts in zip(*sums, strict=True))
    return tokens, pieces


def _row_sums(table: Any) -> tuple[Int64, Int64]:
    """[rows] tokens and [rows] pieces of a row group; every row has a piece."""
    column = table["seq_lengths"].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.flatten().to_numpy().astype(np.int64)
    return np.add.reduceat(values, offsets[:-1] - offsets[0]), np.diff(offsets)


def show_windows(rows: PackedRows, tokenizer_folder: Path) -> list[ShownWindow]:
    """The first, the middle and the last window; their order is random, so that is a fair sample.

    Raises:
        InvalidInput: the tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    path = tokenizer_folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every defect
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    last = len(rows) - 1
    numbers = sorted({last * k // (SHOWN_WINDOWS - 1) for k in range(SHOWN_WINDOWS)})
    return [_shown(rows, number, tokenizer) for number in numbers]


def _shown(rows: PackedRows, number: int, tokenizer: Any) -> ShownWindow:
    row = rows.row(number)
    ends = np.cumsum(row.seq_lengths)
    pieces: list[ShownPiece] = []
    for document, end, length in zip(row.doc_ids, ends, row.seq_lengths, strict=True):
        if len(pieces) == SHOWN_PIECES:
            break
        pieces.append(_piece(document, row.input_ids[end - length : end].tolist(), tokenizer))
    more = len(row.doc_ids) - len(pieces)
    return ShownWindow(
        number, len(row.input_ids), segments_of(row.seq_lengths, rows.window), pieces, more
    )


def segments_of(lengths: Any, window: int) -> list[Segment]:
    """[300, 100] of a window of 400 → (0, 75), (75, 25); borders too close to draw are one."""
    borders = np.unique(np.round(np.cumsum([0, *lengths]) * STRIP / window)) * 100 / STRIP
    return [
        Segment(float(x), float(end - x)) for x, end in zip(borders[:-1], borders[1:], strict=True)
    ]


def _piece(document: str, ids: list[int], tokenizer: Any) -> ShownPiece:
    def text(part: list[int]) -> str:
        return str(tokenizer.decode(part, skip_special_tokens=False))

    if len(ids) <= 2 * ENDS:
        whole = text(ids)
        return ShownPiece(document, len(ids), visible(whole[: 2 * CHARACTERS]), 0, "")
    # A character cut in two by the border between tokens decodes as U+FFFD.
    head = text(ids[:ENDS]).rstrip("\ufffd")[:CHARACTERS]
    tail = text(ids[-ENDS:]).lstrip("\ufffd")[-CHARACTERS:]
    return ShownPiece(document, len(ids), visible(head), len(ids) - 2 * ENDS, visible(tail))


def visible(text: str) -> str:
    """`a\\x00b` → `a\\\\x00b`: what would be unseen or turn other text around, as its code."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
