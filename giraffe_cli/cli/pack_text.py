"""What `giraffe pack-data` says at the end: what went in, what came out, and what was left out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.checkpoint_config import RopeFacts, read_rope, read_shape
from giraffe_cli.checkpoint_files import read_config
from giraffe_cli.errors import InvalidInput
from giraffe_cli.units import format_length

BAR = 24
"""Characters of the longest bar."""


def render(stats: Mapping[str, Any], out: Path) -> list[RenderableType]:
    """The summary, the length histogram, and the sources if there are several."""
    parts: list[RenderableType] = [_summary(stats, out), "", *_histogram(stats)]
    if len(stats["sources"]) > 1:
        parts += ["", _sources(stats)]
    return parts


def following_line(tokenizer: str, folder: Path, out: Path, window: int) -> str:
    """The command that trains on the windows in `out`: to their length where that is beyond the
    reach of the model in `folder`, else, as PoSE does, to twice that reach."""
    words = ["giraffe", "extend", "--model", tokenizer, "--data", str(out), "--target-len"]
    rope = _rope(folder)
    reach = _reach(rope) if rope else 0
    if window > reach:
        words += [format_length(window)]
    else:
        words += [format_length(2 * reach), "--window", format_length(window)]
    if rope and rope.existing:
        words += ["--on-existing-rope", "replace" if rope.base_table is None else "compose"]
    return shlex.join(words)


def _rope(folder: Path) -> RopeFacts | None:
    """RoPE of the model beside the tokenizer; None where it cannot be told."""
    try:
        config = read_config(folder)
        read_shape(config, folder)
        return read_rope(config, folder)
    except InvalidInput:
        return None


def _reach(rope: RopeFacts) -> int:
    """Tokens of the window that a model has now."""
    return int(rope.existing["target_length"]) if rope.existing else rope.native_length


def _summary(stats: Mapping[str, Any], out: Path) -> Table:
    held, capacity = stats["documents_held_out"], stats["windows"] * stats["window"]
    rows = {
        "documents": f"{stats['documents']:,}, of them {held:,} held out for evaluation",
        "each document": stats["tokens_policy"],
        "tokenizer": stats["tokenizer_backend"],
        "tokens": f"{stats['tokens_in']:,} in, {stats['tokens_kept']:,} kept, "
        f"{stats['tokens_dropped']:,} dropped as too short or as tails",
        "windows": f"{stats['windows']:,} of {stats['window']:,} tokens, {stats['rule']}",
        "fill": f"{stats['fill']:.2%} ({stats['padding']:,} of {capacity:,} tokens empty)",
        "documents cut": f"{stats['documents_split']:,}; "
        f"{stats['documents_longer_than_window']:,} are longer than the window",
        "tokens in long documents": f"{stats['long_share']:.1%} in documents of a window or more, "
        f"{stats['half_long_share']:.1%} of half a window or more",
        **_hidden(stats),
        **_left_out(stats),
    }
    table = Table("", "", title=escape(f"packed {out}"), show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return table


def _hidden(stats: Mapping[str, Any]) -> dict[str, str]:
    """A row about look-ups where the windows hold any."""
    lookups = stats.get("lookups")
    if not lookups:
        return {}
    each = lookups["count"] / stats["windows"]
    return {
        "look-ups": f"{lookups['count']:,}, {each:.1f} a window; {lookups['tokens']:,} tokens that "
        "no document has"
    }


def _left_out(stats: Mapping[str, Any]) -> dict[str, str]:
    """Rows about what was repeated, removed or sampled; none where nothing was."""
    rows = {}
    duplicates, contamination = stats["duplicates"], stats["contamination"]
    if stats["tokens_repeated"]:
        rows["overlap"] = f"{stats['tokens_repeated']:,} tokens stored twice"
    if duplicates["documents"]:
        verb = "removed" if duplicates["removed"] else "kept; --dedupe removes them"
        rows["repetitions"] = (
            f"{duplicates['documents']:,} documents, {duplicates['tokens']:,} tokens, {verb}"
        )
    if duplicates["documents_of_held_out"]:
        rows["copies of held-out text"] = (
            f"{duplicates['documents_of_held_out']:,} documents, "
            f"{duplicates['tokens_of_held_out']:,} tokens, removed"
        )
    if contamination:
        rows["shared with evaluations"] = (
            f"{contamination['documents']:,} documents, {contamination['tokens']:,} tokens, removed"
        )
    mixture = stats["mixture"]
    if mixture["documents_too_short"]:
        rows["too short"] = (
            f"{mixture['documents_too_short']:,} documents, "
            f"{mixture['tokens_too_short']:,} tokens, left out"
        )
    if mixture["most_often"] > 1:
        rows["passes"] = f"a document is read {mixture['most_often']} times at the most"
    if stats["skipped"]:
        rows["skipped"] = ", ".join(f"{n:,} × {reason}" for reason, n in stats["skipped"].items())
    return rows


def _histogram(stats: Mapping[str, Any]) -> list[str]:
    """Where the tokens lie, by length of their document."""
    octaves = stats["document_lengths"]
    most = max((entry["tokens"] for entry in octaves), default=0) or 1
    lines = ["tokens by length of their document:"]
    for entry in octaves:
        bar = "█" * round(BAR * entry["tokens"] / most) or "▏"
        name = f"{format_length(entry['from'])} to {format_length(entry['below'])}"
        count = f"{entry['tokens']:>13,} tokens, {entry['documents']:,} documents"
        lines.append(f"  {name:>14} {bar:<{BAR}} {count}")
    return lines


def _sources(stats: Mapping[str, Any]) -> Table:
    table = Table("source", "documents", "tokens", "packed", "share", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    mixture = stats["mixture"]["sources"]
    for name, entry in stats["sources"].items():
        chosen = mixture[name]
        table.add_row(
            escape(name),
            f"{entry['documents']:,}",
            f"{entry['tokens']:,}",
            f"{chosen['tokens_selected']:,}",
            f"{chosen['share']:.1%}",
        )
    return table
