"""What `giraffe rope list|show` say: rows and facts for `--json`, the same in words and tables."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.rope.base import AbstractStrategy, Head, RopeTable, make_table
from giraffe_cli.rope.install import config_with_table
from giraffe_cli.rope.runtimes import portability, runtimes
from giraffe_cli.rope.scheme import AbstractPositions
from giraffe_cli.units import format_length

LLAMA_2 = Head(128, 10000.0, 4096, 16384)
"""The shape on which `rope list` tries what a strategy writes."""


def describe(name: str, kind: type[AbstractStrategy] | type[AbstractPositions]) -> dict[str, Any]:
    """One plug-in: name, texts, knobs; for a strategy also what each runtime makes of it."""
    row: dict[str, Any] = {
        "name": name,
        "summary": kind.summary,
        "source": kind.source,
        "knobs": [
            {"name": field.name, "default": field.default, "doc": field.metadata["doc"]}
            for field in dataclasses.fields(kind)
        ],
    }
    if not issubclass(kind, AbstractStrategy):
        return row
    table = make_table(name, kind.example(LLAMA_2), LLAMA_2)
    return row | {
        "choose_when": kind.choose_when,
        "rope_type": table.rope_parameters["rope_type"],
        "portable_to": portability(config_with_table({}, table)),
    }


def with_facts(table: RopeTable, head: Head) -> dict[str, Any]:
    """`rope.json` of the table, and what is read off it."""
    window = head.original_max_position_embeddings
    config = config_with_table({}, table)
    return table.to_json() | {
        "wavelengths_in_windows": [2 * math.pi / value / window for value in table.inv_freq],
        "pairs_below_one_turn": below_one_turn(head),
        "config": config,
        "runtimes": runtimes(config, table.target_length),
    }


def below_one_turn(head: Head) -> list[int]:
    """Pairs that never completed a turn in training: beyond the native window their angles are
    new to the model."""
    return [pair for pair, turns in enumerate(head.turns()) if turns < 1]


def render_list(
    rows: Sequence[dict[str, Any]], positions: Sequence[dict[str, Any]]
) -> list[RenderableType]:
    """Strategies and position schemes, each with what `describe` says of it."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        grid.add_row(f"[bold]{row['name']}[/]", escape(row["summary"]))
        grid.add_row("", f"choose when: {escape(row['choose_when'])}")
        if row["knobs"]:
            grid.add_row("", f"knobs: {escape(_knobs(row))}")
        grid.add_row("", f"runs in: {escape(_portable(row['portable_to']))}")
        grid.add_row("", f"[dim]{escape(row['source'])}[/]")
    schemes = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in positions:
        schemes.add_row(f"[bold]{row['name']}[/]", escape(row["summary"]))
        if row["knobs"]:
            schemes.add_row("", f"knobs: {escape(_knobs(row))}")
    return [
        "[bold]RoPE strategies[/] (--rope NAME, --set rope.knobs.KNOB=VALUE)\n",
        grid,
        "\n[bold]Position schemes[/] of training windows (--set train.positions=NAME)\n",
        schemes,
        "\nnext: giraffe rope show yarn --target-len 16k",
    ]


def _knobs(row: dict[str, Any]) -> str:
    return "; ".join(
        f"{knob['name']} = {knob['default'] if knob['default'] not in ('', ()) else 'none'}, "
        f"{knob['doc']}"
        for knob in row["knobs"]
    )


def _portable(said: dict[str, str]) -> str:
    """`transformers, vllm: exact; llama.cpp: …`: runtimes of one answer together."""
    answers: dict[str, list[str]] = {}
    for runtime, answer in said.items():
        answers.setdefault(answer, []).append(runtime)
    return "; ".join(f"{', '.join(names)}: {answer}" for answer, names in answers.items())


def _pairs(table: RopeTable, head: Head) -> Iterator[tuple[str, ...]]:
    """Pair, inv_freq, wavelength in tokens and native windows, turns in the window, divisor."""
    window, trained = head.original_max_position_embeddings, head.turns()
    for pair, (value, base) in enumerate(zip(table.inv_freq, head.base_inv_freq(), strict=True)):
        wavelength = 2 * math.pi / value
        cells = (value, wavelength, wavelength / window, trained[pair], base / value)
        mark = "< 1" if trained[pair] < 1 else ""
        yield (str(pair), *(f"{cell:.6g}" for cell in cells), mark)


def render_table(table: RopeTable, head: Head) -> list[RenderableType]:
    """A line for each pair of one table, then what is written to the config."""
    grid = Table(
        "pair", "inv_freq", "wavelength", "in windows", "trained turns", "divided by", "", box=None
    )
    for column in grid.columns:
        column.justify = "right"
    for cells in _pairs(table, head):
        grid.add_row(*cells)
    config = config_with_table({}, table)
    said = runtimes(config, table.target_length)
    return [
        f"{table.strategy}: {_shape(head)}" + _chosen_knobs(table),
        grid,
        f"\n{_untrained(head)}",
        f"attention factor (cos and sin are multiplied by it): {table.attention_factor:.6f}",
        "\nwritten to config.json:",
        escape(json.dumps(_short(config), indent=2)),
        "\nwith it:",
        *(escape(f"  {runtime}: {sentence}") for runtime, sentence in said.items()),
    ]


def render_several(tables: Sequence[RopeTable], head: Head) -> list[RenderableType]:
    """One strategy a row: its type, how many pairs stay, what five pairs are divided by."""
    pairs = [round(part * (head.head_dim // 2 - 1) / 4) for part in range(5)]
    headers = ("strategy", "written as", "kept", *(f"pair {pair}" for pair in pairs), "attention")
    shown = Table(*headers, box=None, padding=(0, 1, 0, 0))
    for place, column in enumerate(shown.columns):
        column.no_wrap, column.justify = True, "left" if place < 2 else "right"
    base = head.base_inv_freq()
    for table in tables:
        divisors = base / np.array(table.inv_freq)
        stay = int((np.abs(divisors - 1) < 1e-9).sum())
        cells = (f"{divisors[pair]:.4g}" for pair in pairs)
        kind = str(table.rope_parameters["rope_type"])
        shown.add_row(table.strategy, kind, str(stay), *cells, f"{table.attention_factor:.4f}")
    return [
        f"what pairs are divided by: {_shape(head)}",
        shown,
        f"\n{_untrained(head)}",
        "every pair: --json, or --plot FILE.png",
    ]


def _shape(head: Head) -> str:
    native = format_length(head.original_max_position_embeddings)
    over = " over the scaling of its base" if head.base_table else ""
    return (
        f"{native} → {format_length(head.target_length)} tokens (s = {head.factor:g}){over}, "
        f"head_dim {head.head_dim}, rope_theta {head.rope_theta:g}"
    )


def _chosen_knobs(table: RopeTable) -> str:
    knobs = {key: _brief(value) for key, value in table.knobs.items()}
    return "".join(f", {key}={value}" for key, value in knobs.items())


def _untrained(head: Head) -> str:
    pairs, window = below_one_turn(head), format_length(head.original_max_position_embeddings)
    if not pairs:
        return f"every pair turned at least once in {window} tokens"
    return (
        f"pairs {pairs[0]} to {pairs[-1]} ({len(pairs)} of {head.head_dim // 2}) turned less than "
        f"once in {window} tokens: unscaled, their angles beyond it are new to the model"
    )


def _brief(value: Any) -> Any:
    return f"[{len(value)} numbers]" if isinstance(value, list | tuple) else value


def _short(config: dict[str, Any]) -> dict[str, Any]:
    """Lists of factors are in the table above already."""
    return {
        key: _short(value) if isinstance(value, dict) else _brief(value)
        for key, value in config.items()
    }
