"""Tables as numbers to vary: a divisor for each pair, never falling, and the attention factor.

    1 ≤ λ_0 ≤ λ_1 ≤ … ≤ λ_last ≤ 2s          θ'_i = θ_i / λ_i

LongRoPE mutates single pairs by steps of 0.01 and takes 1,344 evaluations. In 64 of them single
steps lead nowhere, so pairs move here together: a bump on log λ around one pair, after which the
divisors are made to rise again. Everything is a pure function of its arguments and a generator.

Sources: Ding et al. 2024 (LongRoPE), arXiv 2402.13753, for what is searched and its constraint;
Shang et al. 2025 (LongRoPE2), arXiv 2502.20082, for trying where the critical pair lies first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from giraffe_cli.rope.base import FloatArray, Head, RopeTable, make_table

WIDEST = 2.0
"""Divisors reach up to this times s; LongRoPE's bound of s leaves the slowest pairs no room."""
BUMP = 0.25
"""Standard deviation of a bump's height on log λ: a quarter of a divisor."""
SHARPER = 0.03
"""Of the attention factor's logarithm."""
CRITICAL = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15)
"""Where the critical pair is tried, in parts of where theory puts it."""
SHIFTS = (-2, -1, 1, 2)
"""Pairs by which YaRN's ramp is moved."""


@dataclass(frozen=True)
class Genome:
    """One table."""

    factors: tuple[float, ...]
    """`[head_dim/2]` divisors, fastest pair first."""
    attention_factor: float
    origin: str
    """How it came about: `yarn`, `critical pair 12`, `mutation of 3`."""

    def table(self, head: Head) -> RopeTable:
        """As `--rope longrope --factors` would make it."""
        knobs = {"factors": list(self.factors), "attention": self.attention_factor}
        return make_table("longrope", knobs, head)

    @property
    def logs(self) -> FloatArray:
        """`[head_dim/2]` natural logarithms of the divisors."""
        return np.log(np.array(self.factors, dtype=np.float64))


def legal(logs: FloatArray, attention_factor: float, head: Head, origin: str) -> Genome:
    """The nearest genome that keeps the constraint: clipped, and never falling."""
    bounded = np.clip(np.maximum.accumulate(logs), 0.0, math.log(WIDEST * head.factor))
    # ten digits, so that a genome read back from a file is the same
    factors = tuple(float(f"{factor:.10g}") for factor in np.exp(bounded))
    return Genome(factors, float(f"{attention_factor:.10g}"), origin)


def seed_of(strategy: str, head: Head) -> Genome:
    """A closed formula as a genome."""
    table = make_table(strategy, {}, head)
    logs = np.log(head.base_inv_freq() / np.array(table.inv_freq))
    # what the base multiplies by itself comes back when the table is made
    attention = table.attention_factor / head.base_attention_factor
    return legal(logs, attention, head, strategy)


def critical_pairs(head: Head) -> list[Genome]:
    """NTK up to a critical pair and s beyond it, for several places of that pair; and YaRN's
    divisors moved to faster and to slower pairs.

    Theory puts the critical pair where one turn fills the native window; LongRoPE2 measured it
    faster than that.
    """
    yarn, pairs = seed_of("yarn", head), np.arange(head.head_dim // 2)
    theory, scale = head.pair_turning(1.0), math.log(head.factor)
    found = []
    for part in CRITICAL:
        critical = float(np.clip(part * theory, 1, len(pairs) - 1))
        logs = scale * np.minimum(pairs / critical, 1.0)
        origin = f"critical pair {critical:.1f}"
        found.append(legal(logs, yarn.attention_factor, head, origin))
    for shift in SHIFTS:
        logs = np.interp(pairs - shift, pairs, yarn.logs)
        found.append(legal(logs, yarn.attention_factor, head, f"yarn moved by {shift:+d}"))
    return found


def mutated(
    parent: Genome, first_pair: int, head: Head, generator: np.random.Generator, name: str
) -> Genome:
    """`parent` with a bump around a pair from `first_pair` on, and half of the time a sharper or
    softer attention."""
    pairs = np.arange(len(parent.factors))
    centre = generator.uniform(first_pair, len(pairs))
    width = generator.uniform(0.5, max(1.0, len(pairs) / 6))
    height = generator.normal(0.0, BUMP)
    bump = height * np.exp(-((pairs - centre) ** 2) / (2 * width**2))
    bump[: max(0, first_pair)] = 0.0
    sharper = generator.normal(0.0, SHARPER) if generator.random() < 0.5 else 0.0
    attention = parent.attention_factor * math.exp(sharper)
    # downwards a bump must take the faster pairs along, which a running maximum would not
    logs = (
        np.minimum.accumulate((parent.logs + bump)[::-1])[::-1]
        if height < 0
        else parent.logs + bump
    )
    return legal(logs, attention, head, f"mutation of {name}")


def crossed(
    one: Genome, other: Genome, head: Head, generator: np.random.Generator, name: str
) -> Genome:
    """The faster pairs of `one` and the slower ones of `other`, blended over a few."""
    pairs = np.arange(len(one.factors))
    centre = generator.uniform(0, len(pairs))
    share = 1 / (1 + np.exp(-(pairs - centre)))
    attention = one.attention_factor if generator.random() < 0.5 else other.attention_factor
    return legal(
        (1 - share) * one.logs + share * other.logs, attention, head, f"crossing of {name}"
    )


def unseen(genome: Genome, known: Sequence[Genome]) -> bool:
    """Whether no genome of `known` has the same numbers."""
    return all(
        (genome.factors, genome.attention_factor) != (other.factors, other.attention_factor)
        for other in known
    )
