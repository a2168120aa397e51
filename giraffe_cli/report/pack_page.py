"""`report.html` of a packed corpus: one self-contained page, by the rules of `page.py`.

What went in and came out, where the tokens lie by length of their document, how full the windows
are, what was left out and why, and a few windows decoded with the borders of their pieces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from giraffe_cli import __version__
from giraffe_cli.corpus.store import PAGE, PackedRows, open_packed
from giraffe_cli.report.pack_plots import pack_plots
from giraffe_cli.report.page import STYLESHEET, data_uri, style_digest
from giraffe_cli.rundir import atomic_open
from giraffe_cli.units import format_length

TEMPLATE, OWN_STYLE = "pack.html.j2", "pack.css"
EXCERPT = 220
"""Characters shown of each end of a piece."""
PIECES = 8
"""Pieces shown of a window."""


@dataclass(frozen=True)
class ShownPiece:
    """A piece of a window as the page shows it."""

    doc_id: str
    tokens: int
    share: float
    """Of the window."""
    head: str
    tail: str
    """Empty when the head is all of it."""


@dataclass(frozen=True)
class ShownWindow:
    """A window as the page shows it."""

    number: int
    tokens: int
    pieces: list[ShownPiece]
    more: int
    """Pieces that are not shown."""


def write_page(folder: Path, tokenizer_folder: Path, stats: Mapping[str, Any]) -> Path:
    """Write `report.html` beside the rows of `folder`; its path.

    Raises:
        InvalidInput: `folder` holds no packed rows.
        GiraffeError: it cannot be written.
    """
    rows = open_packed(folder)
    fills, counts = _fills(rows)
    package = resources.files("giraffe_cli.report")
    style = "".join(
        (package / name).read_text(encoding="utf-8") for name in (STYLESHEET, OWN_STYLE)
    )
    environment = Environment(
        loader=DictLoader({TEMPLATE: (package / TEMPLATE).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(length=format_length, data_uri=data_uri)
    html = environment.get_template(TEMPLATE).render(
        style=Markup(style),  # our own files, and the digest below is over exactly these bytes
        style_digest=style_digest(style),
        stats=stats,
        name=folder.name,
        plots=pack_plots(stats, fills, counts),
        windows=_windows(rows, counts, tokenizer_folder),
        left_out=_left_out(stats),
        giraffe_version=__version__,
    )
    with atomic_open(folder / PAGE, "w") as handle:
        handle.write(html)
    return folder / PAGE


def _fills(rows: PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """[windows] tokens and pieces of each window."""
    import pyarrow.parquet as pq

    tokens: list[int] = []
    pieces: list[int] = []
    for path in sorted(rows.folder.glob("rows-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(4096, columns=["seq_lengths"]):
            for lengths in batch.column(0):
                values = lengths.values.to_numpy()
                tokens.append(int(values.sum()))
                pieces.append(len(values))
    return np.array(tokens), np.array(pieces)


def _windows(rows: PackedRows, counts: np.ndarray, tokenizer_folder: Path) -> list[ShownWindow]:
    """The first window, the one of the most pieces, and the last."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    chosen = dict.fromkeys([0, int(counts.argmax()), len(rows) - 1])
    return [_window(rows, number, tokenizer) for number in chosen]


def _window(rows: PackedRows, number: int, tokenizer: Any) -> ShownWindow:
    row = rows.row(number)
    ends = np.cumsum(row.seq_lengths)
    shown = []
    for doc_id, length, end in list(zip(row.doc_ids, row.seq_lengths, ends, strict=True))[:PIECES]:
        ids = row.input_ids[end - length : end]
        head, tail = _ends(ids, tokenizer)
        shown.append(ShownPiece(doc_id, int(length), int(length) / rows.window, head, tail))
    return ShownWindow(number, len(row.input_ids), shown, max(0, len(ends) - PIECES))


def _ends(ids: np.ndarray, tokenizer: Any) -> tuple[str, str]:
    """The text of a piece's two ends, special tokens shown; one text when it is short."""
    if len(ids) <= EXCERPT // 2:
        return tokenizer.decode(ids.tolist(), skip_special_tokens=False), ""
    # A token has at least one character of most texts, so this many are enough.
    head = tokenizer.decode(ids[:EXCERPT].tolist(), skip_special_tokens=False)[:EXCERPT]
    tail = tokenizer.decode(ids[-EXCERPT:].tolist(), skip_special_tokens=False)[-EXCERPT:]
    return head, tail


def _left_out(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is not in the windows and why, in words; empty when everything is."""
    found = []
    if held := stats["documents_held_out"]:
        found.append(("held out for evaluation", f"{held:,} documents"))
    if stats["tokens_dropped"]:
        found.append(
            (
                "pieces too short, or tails",
                f"{stats['tokens_dropped']:,} tokens in {stats['pieces_dropped']:,} pieces",
            )
        )
    mixture, duplicates = stats["mixture"], stats["duplicates"]
    if mixture["documents_too_short"]:
        found.append(("documents too short", f"{mixture['documents_too_short']:,} documents"))
    if duplicates["removed"] and duplicates["documents"]:
        found.append(
            (
                "exact repetitions",
                f"{duplicates['documents']:,} documents, {duplicates['tokens']:,} tokens",
            )
        )
    if stats["contamination"]:
        shared = stats["contamination"]
        found.append(
            (
                "shared with evaluation texts",
                f"{shared['documents']:,} documents, {shared['tokens']:,} tokens",
            )
        )
    found += [(f"skipped: {reason}", f"{n:,} records") for reason, n in stats["skipped"].items()]
    return found
