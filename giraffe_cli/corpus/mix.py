"""Which documents are packed, and how often: the mixture. Pure arithmetic, deterministic in a seed.

Documents fall into cells: their source × short or long (at least the window). A share of the tokens
is set for every cell (`shares.py`), and each cell is filled by whole passes over its documents plus
a random part of one more, so that no document is taken twice before all of its cell are taken once.

The total is what was asked for, else as much as `epochs` passes over the scarcest cell give. Cost:
one permutation of the documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.pack import Int64
from giraffe_cli.corpus.shares import Float64, Mixture, shares
from giraffe_cli.errors import InvalidInput

SHORT_BELOW = 4096
"""Tokens below which the up-sampling calls a document short, when windows are longer than that."""


@dataclass(frozen=True)
class Selection:
    """How often each document is taken, and why."""

    times: npt.NDArray[np.int32]
    """[documents]"""
    in_passes: bool
    """Whether the passes are read one after the other, each document at most once in each."""
    report: dict[str, Any]
    """`stats.json` → `mixture`."""


def select(
    lengths: Int64,
    source: npt.NDArray[np.integer[Any]],
    names: Sequence[str],
    mixture: Mixture,
    window: int,
    seed: int,
) -> Selection:
    """Choose from documents of `lengths` [documents] tokens that belong to `names[source]`.

    Raises:
        InvalidInput: a weight for an unknown source or none for a known one, shares that the
            documents cannot give, or a total that needs more than `epochs` passes.
    """
    eligible = lengths >= max(1, mixture.min_doc_len)
    threshold = min(window, SHORT_BELOW) if mixture.upsample == "long" else window
    cell = 2 * source.astype(np.int64) + (lengths >= threshold)
    counts = np.where(eligible, lengths, 0)
    tokens = _sums(cell, counts, len(names)).astype(np.float64)
    if tokens.sum() == 0:
        raise InvalidInput(
            f"no training document has {max(1, mixture.min_doc_len)} tokens or more",
            "pass a smaller --min-doc-len, or longer documents",
        )
    share = shares(tokens, names, mixture)
    total = _total(tokens, share, names, mixture)
    times, quotas = np.zeros(len(lengths), dtype=np.int32), (share * total).ravel()
    for number, quota in enumerate(quotas.tolist()):
        _fill(times, np.flatnonzero(eligible & (cell == number)), counts, quota, (seed, number))
    if not times.any():  # less than half a document was asked for
        members = np.flatnonzero((counts > 0) & (cell == int(quotas.argmax())))
        times[members[int(counts[members].argmin())]] = 1
    report = {
        "long_from": threshold,
        "documents_too_short": int((~eligible & (lengths > 0)).sum()),
        "tokens_too_short": int(lengths[~eligible].sum()),
        "tokens_asked": round(total),
        "tokens_selected": int((times * lengths).sum()),
        "most_often": int(times.max(initial=0)),
        "sources": _by_source(lengths, counts, cell, times, names, share),
    }
    return Selection(times, not mixture.reweights, report)


def _sums(cell: Int64, tokens: Int64, sources: int) -> Int64:
    """[sources, short and long] tokens; exact below 2^53."""
    sums = np.bincount(cell, weights=tokens, minlength=2 * sources)
    return sums.astype(np.int64).reshape(-1, 2)


def _total(tokens: Float64, share: Float64, names: Sequence[str], mixture: Mixture) -> float:
    """Tokens to select.

    Raises:
        InvalidInput: the wanted total needs more passes than allowed.
    """
    epochs = 1.0 if mixture.epochs is None else mixture.epochs
    # Rows are sources, columns short and long; a cell with a share bounds the total.
    passes_a_token = np.divide(share, tokens, out=np.zeros_like(share), where=tokens > 0)
    most = epochs / passes_a_token.max()
    if mixture.tokens is None:
        return float(most)
    if mixture.tokens > most * (1 + 1e-9):
        number, column = divmod(int(passes_a_token.argmax()), 2)
        needed = mixture.tokens * passes_a_token.max()
        raise InvalidInput(
            f"{mixture.tokens:,} tokens need {needed:.2f} passes over the "
            f"{('short', 'long')[column]} documents of {names[number]}, "
            f"{epochs:g} {'is' if epochs <= 1 else 'are'} allowed",
            f"pass --epochs {np.ceil(needed):.0f}, or --tokens {int(most)}",
        )
    return float(mixture.tokens)


def _fill(
    times: npt.NDArray[np.int32],
    members: Int64,
    lengths: Int64,
    quota: float,
    seed: tuple[int, int],
) -> None:
    """Whole passes over `members`, then the random part whose tokens come nearest to the rest."""
    held = float(lengths[members].sum())
    if held == 0:
        return
    passes = int(quota * (1 + 1e-12) // held)
    times[members] += passes
    rest = quota - passes * held
    if rest <= 1e-9 * held:
        return
    order = members[np.random.default_rng(seed).permutation(len(members))]
    reached = np.concatenate([[0], np.cumsum(lengths[order])])
    times[order[: int(np.abs(reached - rest).argmin())]] += 1


def _by_source(
    lengths: Int64,
    counts: Int64,
    cell: Int64,
    times: npt.NDArray[np.int32],
    names: Sequence[str],
    share: Float64,
) -> dict[str, dict[str, Any]]:
    available = _sums(cell, counts, len(names))
    selected = _sums(cell, times * lengths, len(names))
    total = max(1, int(selected.sum()))
    return {
        name: {
            "tokens_available": int(available[n].sum()),
            "long_tokens_available": int(available[n, 1]),
            "tokens_selected": int(selected[n].sum()),
            "long_tokens_selected": int(selected[n, 1]),
            "documents_selected": int((times[cell // 2 == n] > 0).sum()),
            "share_asked": float(share[n].sum()),
            "share": float(selected[n].sum() / total),
            "most_often": int(times[cell // 2 == n].max(initial=0)),
        }
        for n, name in enumerate(names)
    }
