"""Which documents are packed, and how often: the mixture. Pure arithmetic, deterministic in a seed.

Documents fall into cells: their source × short or long (at least the window). A share of the tokens
is set for every cell, and each cell is filled by whole passes over its documents plus a random part
of one more, so that no document is taken twice before all of its cell are taken once.

    weights     shares of the sources; without them each keeps its own
    upsample    `long`: short documents count a tenth, every source keeps its share (Fu et al. 2024,
                "Data Engineering for Scaling Language Models to 128K Context", per-source length
                up-sampling; their short is below 4,096 tokens, here it is below the window or
                4,096, whichever is less)
    short_mix   share of the tokens that comes from short documents, such as 0.4 (Gao et al. 2024,
                "How to Train Long-Context Language Models (Effectively)": 60 % long, 40 % short)

Weights and a short mix together are met by iterative proportional fitting (Deming and Stephan
1940). The total is what was asked for, else as much as `epochs` passes over the scarcest cell give.
Cost: one permutation of the documents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.pack import Int64
from giraffe_cli.errors import InvalidInput, near_misses

Float64 = npt.NDArray[np.float64]

SHORT_KEPT = 0.1
"""How much a short document counts when long ones are up-sampled."""
SHORT_BELOW = 4096
"""Tokens below which the up-sampling calls a document short, when windows are longer than that."""
ROUNDS = 1000
"""Of proportional fitting; two margins that can be met are met to 1e-9 in far fewer."""


@dataclass(frozen=True)
class Mixture:
    """What the user asked for; the default takes every document once."""

    weights: Mapping[str, float] = field(default_factory=dict)
    """Source → share; all sources or none. They are divided by their sum."""
    upsample: Literal["none", "long"] = "none"
    short_mix: float | None = None
    min_doc_len: int = 0
    """Shorter documents are left out."""
    epochs: float | None = None
    """Most passes over any document; None is one."""
    tokens: int | None = None
    """Tokens to select in all."""

    @property
    def reweights(self) -> bool:
        """Whether some documents are taken more often than others by intent."""
        return bool(self.weights) or self.upsample != "none" or self.short_mix is not None


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
    share = _shares(tokens, names, mixture)
    total = _total(tokens, share, names, mixture)
    times = np.zeros(len(lengths), dtype=np.int32)
    for number, quota in enumerate((share * total).ravel().tolist()):
        _fill(times, np.flatnonzero(eligible & (cell == number)), counts, quota, (seed, number))
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


def _shares(tokens: Float64, names: Sequence[str], mixture: Mixture) -> Float64:
    """[sources, short and long] share of the selected tokens, summing to one."""
    share = tokens.copy()
    rows = share.sum(axis=1) / share.sum()
    if mixture.weights:
        rows = _weights(mixture.weights, names)
        held = share.sum(axis=1)
        if barren := [n for n, w, h in zip(names, rows, held, strict=True) if w > 0 and h == 0]:
            raise InvalidInput(f"--mix gives a share to {', '.join(barren)}, which has no tokens")
    if mixture.upsample == "long":
        # A source without long documents keeps its own: only the balance within a source changes.
        share[:, 0] *= SHORT_KEPT
    if not mixture.reweights:
        return np.asarray(share / share.sum())
    if mixture.short_mix is None:
        return _scaled(share, rows, axis=1)
    columns = np.array([mixture.short_mix, 1 - mixture.short_mix])
    if not mixture.weights:
        _check_short_mix(_scaled(share, columns, axis=0), columns)
        return _scaled(share, columns, axis=0)
    for _ in range(ROUNDS):
        share = _scaled(_scaled(share, rows, axis=1), columns, axis=0)
    if not np.allclose(share.sum(axis=1), rows, atol=1e-3):
        raise InvalidInput(
            f"--mix and --short-mix {mixture.short_mix:g} cannot both be met: "
            + _what_there_is(tokens, names),
            "leave one of them out, or add long or short documents to the source that lacks them",
        )
    return share


def _scaled(share: Float64, margin: Float64, axis: int) -> Float64:
    """`share` with its sums along `axis` made equal to `margin`; a line of zeros stays."""
    sums = share.sum(axis=axis, keepdims=True)
    wanted = np.expand_dims(margin, axis)
    scaled = np.divide(share * wanted, sums, out=np.zeros_like(share), where=sums > 0)
    return np.asarray(scaled)


def _check_short_mix(share: Float64, columns: Float64) -> None:
    if not np.allclose(share.sum(axis=0), columns):
        lacking = "short" if share[:, 0].sum() < columns[0] else "long"
        raise InvalidInput(
            f"--short-mix {columns[0]:g} cannot be met: the corpus has no {lacking} documents",
            "short documents are those below the window; add some, or leave --short-mix out",
        )


def _what_there_is(tokens: Float64, names: Sequence[str]) -> str:
    held = (
        f"{n} has {s:,.0f} short and {g:,.0f} long tokens" for n, (s, g) in _rows(names, tokens)
    )
    return "; ".join(held)


def _rows(names: Sequence[str], tokens: Float64) -> list[tuple[str, tuple[float, float]]]:
    return [(n, (float(r[0]), float(r[1]))) for n, r in zip(names, tokens, strict=True)]


def _weights(weights: Mapping[str, float], names: Sequence[str]) -> Float64:
    for name in weights:
        if name not in names:
            raise InvalidInput(
                f"--mix names `{name}`, which is no source; {near_misses(name, names)}",
                "sources are called as given, or by the name in `name=path`",
            )
    if lacking := [name for name in names if name not in weights]:
        raise InvalidInput(
            f"--mix gives no share to {', '.join(lacking)}",
            "give every source one; 0 leaves it out",
        )
    values = np.array([weights[name] for name in names], dtype=np.float64)
    if not values.sum() > 0 or (values < 0).any():
        raise InvalidInput("--mix needs shares of 0 or more, not all of them 0")
    return np.asarray(values / values.sum())


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
