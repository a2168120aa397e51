"""Numbers of a packed folder, by its manifest, its statistics and its windows' lengths alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from giraffe_cli.corpus.stats import hidden_share
from giraffe_cli.corpus.store import STATS, columns, is_packed
from giraffe_cli.rundir import MANIFEST, read_json


def num_rows(folder: Path) -> int:
    """Windows of a packed folder, by its manifest."""
    return int(read_json(folder / MANIFEST)["layout"]["rows"])


def num_held_out(folder: Path) -> int:
    """Documents that packing kept out of training, by its statistics."""
    return int(read_json(folder / STATS)["documents_held_out"])


def lookup_share(folders: Iterable[Path]) -> float | None:
    """The largest share that look-ups have of the tokens of packed folders, by their statistics;
    None where none holds any."""
    return max((hidden_share(read_json(folder / STATS)) for folder in folders), default=0.0) or None


def attention_share(folder: Path) -> float:
    """s²: the mean over a packed folder's windows of Σ l² / S², the part of full attention that
    documents of l tokens leave over in windows of S; reads their lengths alone."""
    window, squares, rows = read_json(folder / MANIFEST)["window"], 0.0, 0
    for column in columns(folder, "seq_lengths"):
        lengths = column.flatten().to_numpy().astype(float)
        squares, rows = squares + float(lengths @ lengths), rows + len(column)
    return squares / (rows * window**2) if rows else 1.0


def given_attention_share(sources: Iterable[str], across_documents: bool) -> float:
    """That of the packed folder that `sources` name in the place of corpora; 1, a document a
    window, where nothing is packed yet, or documents see each other."""
    packed = [Path(source) for source in sources if is_packed(Path(source))]
    return attention_share(packed[0]) if packed and not across_documents else 1.0


def rows_without_target(folder: Path, across_documents: bool = False) -> int:
    """Windows of a packed folder in which no token has a next one in its document; in its window
    where documents see each other. Reads lengths alone."""
    count = 0
    for column in columns(folder, "seq_lengths"):
        ends = column.offsets.to_numpy()
        tokens = np.add.reduceat(column.flatten().to_numpy(), (ends - ends[0])[:-1])
        count += int((tokens <= (1 if across_documents else np.diff(ends))).sum())
    return count


def share_beyond(folder: Path, length: int, across_documents: bool = False) -> float:
    """Of all tokens of a packed folder, those with `length` or more of their document before them;
    of their window where documents see each other. Reads lengths alone."""
    beyond = tokens = 0
    for column in columns(folder, "seq_lengths"):
        lengths = column.flatten().to_numpy()
        if across_documents:
            ends = column.offsets.to_numpy()
            lengths = np.add.reduceat(lengths, (ends - ends[0])[:-1])
        beyond += int(np.maximum(lengths - length, 0).sum())
        tokens += int(lengths.sum())
    return beyond / tokens if tokens else 0.0
