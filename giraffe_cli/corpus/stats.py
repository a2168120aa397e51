"""What went into a packed corpus and what came out: `stats.json`, and when to warn about it."""

from __future__ import annotations

from typing import Any

import numpy as np

from giraffe_cli.corpus.pack import Int64, Plan

LITTLE_LONG = 0.1
"""Below this share of tokens in long documents a corpus mostly teaches short contexts."""


def packing_stats(lengths: Int64, the_plan: Plan) -> dict[str, Any]:
    """The promised keys that follow from document `lengths` [documents] and the windows.

    `tokens_in` = `tokens_kept` + `tokens_dropped`; `padding` is what the windows fall short of full
    (not stored); `long_share` is the share of tokens in documents at least the window long.
    """
    window, tokens = the_plan.window, int(lengths.sum())
    long_tokens = int(lengths[lengths >= window].sum())
    capacity = len(the_plan) * window
    return {
        "tokens_in": tokens,
        "tokens_kept": the_plan.kept_tokens,
        "tokens_dropped": the_plan.dropped_tokens,
        "pieces_dropped": the_plan.dropped_pieces,
        "windows": len(the_plan),
        "window": window,
        "fill": the_plan.kept_tokens / capacity if capacity else 0.0,
        "padding": the_plan.padding,
        # Only a document longer than the window is cut, and each of those is.
        "documents_split": int((lengths > window).sum()),
        "documents_longer_than_window": int((lengths > window).sum()),
        "long_share": long_tokens / tokens if tokens else 0.0,
        "longest_document": int(lengths.max(initial=0)),
        "document_lengths": length_histogram(lengths),
    }


def length_histogram(lengths: Int64) -> list[dict[str, int]]:
    """Documents and tokens by octave: 256 ≤ length < 512, ...; octaves without any are left out."""
    octaves = np.frexp(np.maximum(lengths, 1).astype(np.float64))[1] - 1
    return [
        {
            "from": int(2**octave),
            "below": int(2 ** (octave + 1)),
            "documents": int((octaves == octave).sum()),
            "tokens": int(lengths[octaves == octave].sum()),
        }
        for octave in np.unique(octaves).tolist()
    ]


def too_little_long(stats: dict[str, Any]) -> str | None:
    """The warning that a corpus of short documents deserves, with its numbers; else None."""
    window, share = stats["window"], stats["long_share"]
    if stats["longest_document"] < window:
        fact = f"no document reaches the window of {window} tokens"
    elif share < LITTLE_LONG:
        fact = f"few documents reach the window of {window} tokens"
    else:
        return None
    return (
        f"{fact} (the longest has {stats['longest_document']}, long_share {share:.2f}): "
        "short documents glued together teach nothing long"
    )
