"""The share of the tokens that each cell of a mixture gets: a source × short or long documents.

    weights     shares of the sources; without them each keeps its own
    upsample    `long`: short documents count a tenth, every source keeps its share (Fu et al. 2024,
                "Data Engineering for Scaling Language Models to 128K Context", per-source length
                up-sampling; their short is below 4,096 tokens, here it is below the window or
                4,096, whichever is less)
    short_mix   share of the tokens that comes from short documents, such as 0.4 (Gao et al. 2024,
                "How to Train Long-Context Language Models (Effectively)": 60 % long, 40 % short)

Weights and a short mix together are met by iterative proportional fitting (Deming and Stephan
1940).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput, near_misses

Float64 = npt.NDArray[np.float64]

SHORT_KEPT = 0.1
"""How much a short document counts when long ones are up-sampled."""
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


def shares(tokens: Float64, names: Sequence[str], mixture: Mixture) -> Float64:
    """[sources, short and long] share of the selected tokens, summing to one.

    Args:
        tokens: [sources, short and long] tokens there are.

    Raises:
        InvalidInput: a weight for an unknown source or none for a known one, or shares that the
            documents cannot give.
    """
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


def check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Shares of `names`, sources; none at all are right too.

    Raises:
        InvalidInput: a weight for an unknown source or none for a known one, or all are 0.
    """
    if not weights:
        return
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
    if not sum(weights.values()) > 0 or min(weights.values()) < 0:
        raise InvalidInput("--mix needs shares of 0 or more, not all of them 0")


def _weights(weights: Mapping[str, float], names: Sequence[str]) -> Float64:
    check_weights(weights, names)
    values = np.array([weights[name] for name in names], dtype=np.float64)
    values /= values.max()  # shares of 1e308 have no sum
    return np.asarray(values / values.sum())
