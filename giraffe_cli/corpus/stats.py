"""What went into a packed corpus and what came out: `stats.json`, and when to warn about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.base import MOST_NAMED
from giraffe_cli.corpus.lookups import room_for_lookups
from giraffe_cli.corpus.pack import Int64, Plan

LITTLE_LONG = 0.1
"""Below this share of tokens in long documents a corpus mostly teaches short contexts."""
MANY_DUPLICATES = 0.01
"""Share of the tokens in repeated documents above which it is worth a word."""
FAR_FROM_ASKED = 0.2
"""Of the larger of two shares: a difference worth a word."""
MANY_PASSES = 4
"""Passes up to which repeated text is nearly worth new text (Muennighoff et al. 2023, "Scaling
Data-Constrained Language Models")."""


def packing_stats(
    lengths: Int64, the_plan: Plan, times: npt.NDArray[np.int32] | None = None
) -> dict[str, Any]:
    """The promised keys that follow from document `lengths` [documents] and the windows.

    A document taken `times` k counts k times; None is once each. `tokens_in` = `tokens_kept` +
    `tokens_dropped`; `tokens_repeated` are stored once more by the overlap of pieces; `padding` is
    what the windows fall short of full (not stored); `long_share` is the share of tokens in
    documents at least the window long, `half_long_share` at least half of it.
    """
    window, capacity = the_plan.window, len(the_plan) * the_plan.window
    taken = lengths if times is None else np.repeat(lengths, times)
    # Each document that is cut has one piece that begins it and is not all of it.
    cut = (the_plan.start == 0) & (the_plan.length < lengths[the_plan.document])
    return {
        "tokens_in": int(taken.sum()),
        "tokens_kept": the_plan.kept_tokens,
        "tokens_dropped": the_plan.dropped_tokens,
        "tokens_repeated": the_plan.repeated_tokens,
        "pieces_dropped": the_plan.dropped_pieces,
        "windows": len(the_plan),
        "window": window,
        "fill": (capacity - the_plan.padding) / capacity if capacity else 0.0,
        "padding": the_plan.padding,
        "documents_split": int(cut.sum()),
        "documents_longer_than_window": int((taken > window).sum()),
        "long_share": share_of_tokens(taken, window),
        "half_long_share": share_of_tokens(taken, -(-window // 2)),
        "longest_document": int(taken.max(initial=0)),
        "document_lengths": length_histogram(taken),
    }


def with_lookups(the_plan: Plan, window: int, lookups: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys that look-ups change; `window` is that of the plan and room for them."""
    if lookups is None:
        return {"lookups": None}
    capacity = len(the_plan) * window
    padding = capacity - int(the_plan.length.sum()) - lookups["tokens"]
    return {
        "lookups": dict(lookups),
        "window": window,
        "fill": (capacity - padding) / capacity,
        "padding": padding,
    }


def hidden_share(stats: Mapping[str, Any]) -> float:
    """The share that look-ups have of all tokens in the windows."""
    lookups = stats.get("lookups")
    if not lookups or not lookups["count"]:
        return 0.0
    tokens = int(lookups["tokens"])
    return tokens / (int(stats["tokens_kept"]) + int(stats["tokens_repeated"]) + tokens)


def share_of_tokens(lengths: Int64, at_least: int) -> float:
    """The share of tokens that lie in documents of `at_least` tokens or more."""
    tokens = int(lengths.sum())
    return int(lengths[lengths >= at_least].sum()) / tokens if tokens else 0.0


def length_histogram(lengths: Int64) -> list[dict[str, int]]:
    """Documents and tokens by octave: 256 ≤ length < 512, ...; octaves without any are left out."""
    octaves = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    documents = np.bincount(octaves)
    tokens = np.bincount(octaves, weights=lengths).astype(np.int64)
    return [
        {
            "from": 1 << octave,
            "below": 1 << (octave + 1),
            "documents": int(documents[octave]),
            "tokens": int(tokens[octave]),
        }
        for octave in np.flatnonzero(documents).tolist()
    ]


def skipped_in(done: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Reason → records skipped, over the `done.json` of units."""
    total: dict[str, int] = {}
    for unit in done:
        for reason, count in unit["skipped"].items():
            total[reason] = total.get(reason, 0) + count
    return total


def named_in(done: Iterable[Mapping[str, Any]]) -> list[str]:
    """The first `MOST_NAMED` records skipped as bad, each with its place and reason, over the
    `done.json` of units; those of before there were names have none."""
    named = (record for unit in done for record in unit.get("skipped_records", []))
    return list(itertools.islice(named, MOST_NAMED))


def source_stats(
    lengths: Int64, source: npt.NDArray[np.integer[Any]], names: list[str]
) -> dict[str, dict[str, Any]]:
    """Documents, tokens and length histogram of each source, of the documents tokenised."""
    return {
        name: {
            "documents": int((source == number).sum()),
            "tokens": int(lengths[source == number].sum()),
            "document_lengths": length_histogram(lengths[source == number]),
        }
        for number, name in enumerate(names)
    }


def too_little_long(stats: Mapping[str, Any]) -> str | None:
    """The warning that a corpus of short documents deserves, with its numbers; else None."""
    window, share = _window_of_text(stats), stats["long_share"]
    if stats["longest_document"] < window:
        fact = f"no document reaches the window of {window} tokens"
    elif share < LITTLE_LONG:
        fact = f"few documents reach the window of {window} tokens"
    else:
        return None
    return (
        f"{fact} (the longest has {stats['longest_document']}, long_share {share:.2f}, "
        f"{stats['half_long_share']:.2f} reach half of it): "
        "short documents glued together teach nothing long"
    )


def _window_of_text(stats: Mapping[str, Any]) -> int:
    """Tokens of a document that a window holds: all but the room for look-ups."""
    lookups = stats.get("lookups")
    window: int = stats["window"]
    return window - room_for_lookups(lookups["share"], window) if lookups else window


def warnings_of(stats: Mapping[str, Any]) -> list[str]:
    """What the user should act on or accept, each with its numbers."""
    found = [message] if (message := too_little_long(stats)) else []
    repeats, removed = stats["duplicates"]["tokens"], stats["duplicates"]["removed"]
    if not removed and repeats > MANY_DUPLICATES * stats["tokens_in"]:
        found.append(
            f"{stats['duplicates']['documents']} documents ({repeats} tokens) repeat an earlier "
            "one; --dedupe leaves them out"
        )
    sources = stats["mixture"]["sources"]
    for name, entry in sources.items():
        asked, share = entry["share_asked"], entry["share"]
        if abs(share - asked) > FAR_FROM_ASKED * max(asked, share):
            found.append(
                f"{name} makes up {share:.1%} of the tokens, {asked:.1%} was asked for: documents "
                "are taken whole; more --tokens or --epochs come nearer to it"
            )
    lookups = stats.get("lookups")
    if lookups and hidden_share(stats) < (1 - FAR_FROM_ASKED) * lookups["share"]:
        found.append(
            f"look-ups make up {hidden_share(stats):.1%} of the tokens, {lookups['share']:.1%} was "
            "asked for: one needs a document of some hundred tokens, and a window's room for "
            "them may be too small for one more; it stays empty"
        )
    most = stats["mixture"]["most_often"]
    if most > MANY_PASSES:
        found.append(
            f"some documents are read {most} times; beyond {MANY_PASSES} passes text teaches little"
        )
    if stats["skipped"]:
        where = "; stats.json names them as skipped_records" if stats.get("skipped_records") else ""
        found.append(f"skipped: {listed(stats['skipped'])}{where}")
    return found


def listed(skipped: Mapping[str, int]) -> str:
    """`2 × empty file, 1 × binary file`: why nothing was read of what."""
    return ", ".join(f"{count} × {reason}" for reason, count in skipped.items())
