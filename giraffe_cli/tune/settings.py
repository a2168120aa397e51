"""What is compared: strategies under a few knobs each, likeliest first.

    settings(head, ["yarn", "ntk"])   → yarn · yarn beta_fast=16 · yarn factor=32 · ntk alpha=32 · …

The order is the prior: how near a strategy's tables come to YaRN's on a log scale, since YaRN is
the best published closed formula without training, and within a strategy how near each is. It
decides what is read first and what a short budget leaves out, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from giraffe_cli.errors import InvalidInput, near_misses
from giraffe_cli.rope.base import Head, RopeTable, make_table, strategies

PRIOR = "yarn"
"""The strategy whose neighbours are read first."""


@dataclass(frozen=True)
class Setting:
    """A strategy with knobs, applied to one head."""

    label: str
    """`yarn`, `yarn beta_fast=16`."""
    strategy: str
    knobs: dict[str, Any]
    """Those that were given; the rest is the strategy's own."""
    table: RopeTable


def settings(
    head: Head,
    names: Sequence[str] = (),
    given: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[list[Setting], list[str]]:
    """Every strategy, or those of `names`, under its `variants`; and why some are left out.

    Equal tables are one setting, of the name that comes first.

    Args:
        given: strategy → knobs that stand in the place of its variants.

    Raises:
        InvalidInput: an unknown strategy, knobs of one that is not compared, or given knobs that
            are refused.
    """
    known, given = strategies(), given or {}
    chosen = list(names) or sorted(known)
    for name in [*chosen, *given]:
        if name not in known:
            raise InvalidInput(f"unknown RoPE strategy `{name}`", near_misses(name, known))
    if unused := sorted({*given} - {*chosen}):
        raise InvalidInput(
            f"knobs of {', '.join(unused)} have no effect", "compare it too, or leave them out"
        )
    found, left_out = list[Setting](), list[str]()
    for name in chosen:
        try:
            own = [dict(given[name])] if name in given else known[name].variants(head)
        except InvalidInput as problem:  # no knobs that suit this head
            left_out.append(f"{name}: {problem.message}")
            continue
        for knobs in own:
            label = label_of(name, knobs)
            try:
                found.append(Setting(label, name, knobs, make_table(name, knobs, head)))
            except InvalidInput as problem:
                if name in given:
                    raise
                left_out.append(f"{label}: {problem.message}")
    return _distinct(by_prior(found, head)), left_out


def label_of(strategy: str, knobs: Mapping[str, Any]) -> str:
    """`ntk alpha=32`; a list of numbers is told by its size."""
    told = (
        f"{name}=[{len(value)}]" if isinstance(value, list | tuple) else f"{name}={_short(value)}"
        for name, value in knobs.items()
    )
    return " ".join([strategy, *told])


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def by_prior(found: Sequence[Setting], head: Head) -> list[Setting]:
    """Of the strategy that comes nearest to YaRN's table first, among its own the nearest first;
    where YaRN has none on this head, as they are."""
    try:
        centre = make_table(PRIOR, {}, head)
    except InvalidInput:
        return list(found)
    away = {setting.label: distance(setting.table, centre) for setting in found}
    nearest = {
        name: min(away[setting.label] for setting in found if setting.strategy == name)
        for name in {setting.strategy for setting in found}
    }
    return sorted(found, key=lambda s: (nearest[s.strategy], s.strategy, away[s.label]))


def distance(table: RopeTable, other: RopeTable) -> float:
    """Root mean square of the log ratios of all pairs, and of the attention factors."""
    pairs = np.log(np.array(table.inv_freq) / np.array(other.inv_freq))
    attention = np.log(table.attention_factor / other.attention_factor)
    return float(np.sqrt(np.mean(np.append(pairs, attention) ** 2)))


def _distinct(found: Sequence[Setting]) -> list[Setting]:
    """Without tables that an earlier setting has already."""
    kept: dict[tuple[Any, ...], Setting] = {}
    for setting in found:
        rounded = tuple(float(f"{value:.9g}") for value in setting.table.inv_freq)
        kept.setdefault((rounded, round(setting.table.attention_factor, 9)), setting)
    return list(kept.values())
