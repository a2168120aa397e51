"""Strategies, position schemes and evaluation tasks, each from its own file."""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown import page, sentence, table

from giraffe_cli.evals.base import tasks
from giraffe_cli.rope.base import Head, make_table, strategies
from giraffe_cli.rope.scheme import position_schemes

LLAMA_2 = Head(128, 10000.0, 4096, 16384)
"""The shape that pictures and examples are drawn for."""
LEAD = """What each strategy computes, with its source and knobs; made from its file. Pictures and
numbers are Llama-2's: head_dim 128, θ 10,000, 4k to 16k tokens. How to choose: [Choosing a
table](../choosing.md)."""
TASKS_LEAD = """Every task of `giraffe eval`, its measures and knobs; made from its file. What they
are for: [Evaluation](../evaluation.md)."""


def strategies_page() -> str:
    parts = [part for name, kind in strategies().items() for part in _strategy(name, kind)]
    parts.append("## Position schemes")
    parts.append("Set with `train.positions`, their knobs with `train.position_knobs`.")
    parts += [p for name, kind in position_schemes().items() for p in _plugin(name, kind, 3)]
    return page("Strategies and position schemes", " ".join(LEAD.split()), parts)


def tasks_page() -> str:
    parts = []
    for name, kind in tasks().items():
        rows = (
            [f"`{name}{'.' * bool(suffix)}{suffix}`", measure.summary, measure.unit]
            + ["higher" if measure.higher_is_better else "lower", f"{measure.chance:g}"]
            for suffix, measure in kind.measures.items()
        )
        parts += _plugin(name, kind)
        parts.append(table(["measure", "what it is", "unit", "better", "chance"], rows))
    return page("Evaluation tasks", " ".join(TASKS_LEAD.split()), parts)


def draw_strategies(folder: Path) -> None:
    """`strategy-NAME.png`, each beside the unscaled table."""
    from giraffe_cli.report.rope_plot import rope_plot

    unscaled = make_table("none", {}, LLAMA_2)
    for name, kind in strategies().items():
        made = make_table(name, kind.example(LLAMA_2), LLAMA_2)
        drawn = [unscaled] if name == "none" else [unscaled, made]
        (folder / f"strategy-{name}.png").write_bytes(rope_plot(drawn, LLAMA_2).png)


def _strategy(name: str, kind: Any) -> Iterator[str]:
    made = make_table(name, kind.example(LLAMA_2), LLAMA_2)
    yield from _plugin(name, kind)
    yield (
        f"Written as `{made.rope_parameters['rope_type']}`, attention factor "
        f"{made.attention_factor:.6g}. When to choose it: {sentence(kind.choose_when)}"
    )
    yield f"![{name}: what each pair is divided by, and its wavelength](strategy-{name}.png)"


def _plugin(name: str, kind: Any, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {name}"
    yield sentence(kind.summary)
    yield as_markdown(sys.modules[kind.__module__].__doc__ or "")
    yield f"Source: {sentence(kind.source)}"
    knobs = [f for f in dataclasses.fields(kind) if "doc" in f.metadata]
    if knobs:
        yield table(["knob", "default", "what it says"], map(_knob, knobs))


def _knob(field: dataclasses.Field[Any]) -> list[str]:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    bounds = f" From {low:g} to {high:g}." if low is not None else ""
    return [f"`{field.name}`", f"`{field.default}`", sentence(field.metadata["doc"]) + bounds]


def as_markdown(docstring: str) -> str:
    """Prose stays prose, an indented block becomes a fenced one, symbols stay as they stand."""
    text = textwrap.dedent(docstring).strip()
    parts = []
    for block in re.split(r"\n(?=    )|(?<=\S)\n(?=\S.*\n    )|\n\n", text):
        lines = block.strip("\n").splitlines()
        if lines and all(line.startswith("    ") or not line.strip() for line in lines):
            body = "\n".join(line[4:] for line in lines)
            if parts and parts[-1].endswith("```"):
                parts[-1] = f"{parts[-1][:-4]}\n{body}\n```"
            else:
                parts.append(f"```text\n{body}\n```")
        elif lines:
            parts.append(_escaped(" ".join(lines)))
    return "\n\n".join(parts)


def _escaped(text: str) -> str:
    """Signs that Markdown would read, outside of code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
