"""`report.html` of a packed corpus: what went in, what came out, and three windows to read.

    write_page(Path("packed/books"), Path("llama"), stats) → packed/books/report.html

One self-contained file by the rules of `templates.py`. The manifest does not guard it, since it
follows from what the manifest guards.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.corpus.stats import warnings_of
from giraffe_cli.corpus.store import PAGE, PackedRows
from giraffe_cli.report.numbers import exact_percent
from giraffe_cli.report.pack_plots import pack_plots
from giraffe_cli.report.pack_windows import fills, show_windows
from giraffe_cli.report.templates import render
from giraffe_cli.rundir import MANIFEST, atomic_open, read_json
from giraffe_cli.units import counted

TEMPLATE, OWN_STYLE = "pack.html.j2", "pack.css"


class Entry(NamedTuple):
    """A line of the account of tokens."""

    name: str
    tokens: int
    note: str
    kind: str
    """`total`, `less`, or `more`."""


def write_page(folder: Path, tokenizer_folder: Path, stats: Mapping[str, Any]) -> Path:
    """Write `report.html` into the packed `folder`; its path.

    Args:
        folder: what `pack-data` wrote.
        tokenizer_folder: holds the `tokenizer.json` that it was packed with.
        stats: content of its `stats.json`.

    Raises:
        InvalidInput: the folder or the tokenizer cannot be read.
        GiraffeError: the page cannot be written.
    """
    manifest = read_json(folder / MANIFEST)
    rows = PackedRows(folder, manifest)
    tokens, pieces = fills(rows)
    page = render(
        TEMPLATE,
        {
            "folder": str(folder),
            "name": folder.resolve().name,
            "stats": stats,
            "headline": headline(stats),
            "warnings": warnings_of(stats),
            "plots": pack_plots(stats, tokens, pieces),
            "pieces": int(pieces.sum()),
            "account": account(stats),
            "asked": asked(manifest["inputs"]["config"]),
            "windows": show_windows(rows, tokenizer_folder),
            "settings": settings(manifest, stats),
            "digests": manifest["inputs"]["sources"],
        },
        (OWN_STYLE,),
    )
    with atomic_open(folder / PAGE, "w") as handle:
        handle.write(page)
    return folder / PAGE


def headline(stats: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The four figures one looks for first: figure, name, what it means."""
    held = stats["documents_held_out"]
    return [
        (exact_percent(stats["fill"]), "full", f"{stats['padding']:,} tokens of room stay empty"),
        (
            f"{stats['tokens_kept']:,}",
            "tokens packed",
            f"{stats['tokens_dropped']:,} dropped",
        ),
        (
            f"{stats['documents']:,}",
            "documents",
            f"{held:,} held out for evaluation",
        ),
        (
            exact_percent(stats["long_share"]),
            "of tokens in long documents",
            "of a window or more; "
            f"{exact_percent(stats['half_long_share'])} of half a window or more",
        ),
    ]


def account(stats: Mapping[str, Any]) -> list[Entry]:
    """From the tokens of all training documents to those in windows, line by line; lines add up."""
    mixture, duplicates, evaluation = (
        stats["mixture"],
        stats["duplicates"],
        stats["contamination"],
    )
    tokens = sum(source["tokens"] for source in stats["sources"].values())
    available = sum(source["tokens_available"] for source in mixture["sources"].values())
    removed = tokens - available - mixture["tokens_too_short"]
    reasons = []
    if duplicates["removed"]:
        reasons.append(f"{counted(duplicates['documents'], 'document')} repeating an earlier one")
    if duplicates["documents_of_held_out"]:
        reasons.append(
            f"{counted(duplicates['documents_of_held_out'], 'document')} repeating one held out"
        )
    if evaluation:
        reasons.append(
            f"{counted(evaluation['documents'], 'document')} sharing text with an evaluation"
        )
    changed = stats["tokens_in"] - available
    stored = stats["tokens_kept"] + stats["tokens_repeated"]
    lookups = stats.get("lookups") or {"tokens": 0, "count": 0}
    added, looked_up = lookups["tokens"], lookups["count"]
    lines = [
        Entry("in training documents", tokens, "", "total"),
        Entry("removed", removed, "; ".join(reasons), "less"),
        Entry(
            "in documents that are too short",
            mixture["tokens_too_short"],
            f"{counted(mixture['documents_too_short'], 'document')} below --min-doc-len",
            "less",
        ),
        Entry("left aside by the mixture", max(0, -changed), "", "less"),
        Entry(
            "repeated by the mixture",
            max(0, changed),
            f"a document is read {mixture['most_often']} times at the most",
            "more",
        ),
        Entry(
            "dropped",
            stats["tokens_dropped"],
            f"pieces that are too short, or tails: {stats['pieces_dropped']:,}",
            "less",
        ),
        Entry("stored again by overlap", stats["tokens_repeated"], "", "more"),
        Entry("of look-ups", added, f"{looked_up:,} made-up facts and their questions", "more"),
        Entry("in windows", stored + added, f"{stats['windows']:,} windows", "total"),
    ]
    return [line for line in lines if line.tokens or line.kind == "total"]


def asked(config: Mapping[str, Any]) -> list[str]:
    """The mixture that was asked for, in words; empty when none was."""
    words = []
    if config["mix"]:
        words.append(", ".join(f"{name} {weight:g}" for name, weight in config["mix"].items()))
    if config["upsample"] != "none":
        words.append(f"{config['upsample']} documents more often")
    if config["short_mix"] is not None:
        words.append(f"{config['short_mix']:.0%} of the tokens from short documents")
    if config["token_budget"] is not None:
        words.append(f"{config['token_budget']:,} tokens")
    if config["epochs"] is not None:
        words.append(f"at most {config['epochs']:g} passes over a document")
    return words


def settings(manifest: Mapping[str, Any], stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it was packed with, as rows of text."""
    config = manifest["inputs"]["config"]
    rows = [
        ("window", f"{stats['window']:,} tokens"),
        ("rule", stats["rule"]),
        ("overlap", f"{config['overlap'] or 0:,} tokens"),
        ("shortest piece", f"{config['min_piece']:,} tokens"),
        ("each document", stats["tokens_policy"]),
        ("tokenizer", stats["tokenizer_backend"]),
        ("held out", f"{config['hold_out']:.0%} of the documents"),
        ("exact repetitions", "removed" if config["dedupe"] else "kept"),
        ("seed", str(manifest["inputs"]["seed"])),
    ]
    if stats["contamination"]:
        rows.append(("compared with", ", ".join(stats["contamination"]["files"])))
    if stats["skipped"]:
        listed = ", ".join(f"{n:,} × {reason}" for reason, n in stats["skipped"].items())
        rows.append(("skipped", listed))
    return rows
