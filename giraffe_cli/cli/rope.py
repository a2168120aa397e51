"""`giraffe rope list|show`: the strategies and the tables they make."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.rope.base import AbstractStrategy, Head, RopeTable, make_table, strategies
from giraffe_cli.units import format_length, parse_length

LIST_EXAMPLES = """[bold]Examples[/]\n
giraffe rope list\n
giraffe rope list --json"""

SHOW_EXAMPLES = """[bold]Examples[/]\n
giraffe rope show yarn --target-len 16k\n
giraffe rope show ntk --target-len 32k --head-dim 128 --rope-theta 10000 --original-len 4k\n
giraffe rope show yarn --model runs/base --target-len 16k --set beta_fast=64 --json"""

app = typer.Typer(help="The RoPE strategies and their tables.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("list", epilog=LIST_EXAMPLES)
def list_strategies(as_json: AsJson = False) -> None:
    """List the RoPE strategies: what each does, its knobs, when to choose it."""
    known = strategies()
    rows = [{"name": name, **_describe(kind)} for name, kind in known.items()]
    Console(as_json).result({"strategies": rows}, _render_list(rows))


@app.command("show", epilog=SHOW_EXAMPLES)
def show(
    target_len: Annotated[str, typer.Option(help="Window to reach, such as 16k.")],
    name: Annotated[str, typer.Argument(help="A strategy of `giraffe rope list`.")] = "yarn",
    model: Annotated[
        str | None, typer.Option(help="Take the shape from a checkpoint; default: calf.")
    ] = None,
    head_dim: Annotated[int | None, typer.Option(help="Or give it: dimensions of a head.")] = None,
    rope_theta: Annotated[
        float | None, typer.Option(help="Base of the unscaled table; 10000 with --head-dim.")
    ] = None,
    original_len: Annotated[
        str | None, typer.Option(help="Native window; 4k with --head-dim.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A knob, such as beta_fast=64; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the table of one strategy: each pair's frequency, wavelength, turns in the native
    window and divisor, the attention factor, and the config that will be written."""
    head = _head(model, head_dim, rope_theta, original_len, parse_length(target_len))
    table = make_table(name, _knobs(settings or []), head)
    Console(as_json).result(table.to_json(), _render_table(table, head))


def _describe(kind: type[AbstractStrategy]) -> dict[str, Any]:
    knobs = [
        {"name": field.name, "default": field.default, "doc": field.metadata["doc"]}
        for field in dataclasses.fields(kind)
    ]
    return {
        "summary": kind.summary,
        "source": kind.source,
        "choose_when": kind.choose_when,
        "knobs": knobs,
    }


def _head(
    model: str | None,
    head_dim: int | None,
    rope_theta: float | None,
    original_len: str | None,
    target_length: int,
) -> Head:
    """The shape from the options alone, or from a checkpoint with θ and window overridden."""
    if head_dim is not None:
        if model is not None:
            raise UsageError("--model and --head-dim both name a shape", "give one of them")
        return _checked(
            Head(head_dim, rope_theta or 10000.0, parse_length(original_len or "4k"), target_length)
        )
    from giraffe_cli.checkpoint import inspect

    # Only a GGUF is converted, and only its shape is wanted here.
    with tempfile.TemporaryDirectory() as work_dir:
        head = inspect(model or "calf", Path(work_dir)).head(target_length)
    changes: dict[str, Any] = {} if rope_theta is None else {"rope_theta": rope_theta}
    if original_len is not None:
        changes["original_max_position_embeddings"] = parse_length(original_len)
    return _checked(dataclasses.replace(head, **changes))


def _checked(head: Head) -> Head:
    if head.head_dim < 4 or head.head_dim % 2:
        raise InvalidInput(f"head_dim is {head.head_dim}, needs an even integer of at least 4")
    if not 1 < head.rope_theta < math.inf:
        raise InvalidInput(f"rope_theta is {head.rope_theta:g}, needs a number above 1")
    return head


def _knobs(settings: list[str]) -> dict[str, Any]:
    knobs = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set {setting}: no `knob=value`", "write --set beta_fast=64")
        try:
            knobs[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {setting}: the value is not YAML") from error
    return knobs


def _render_list(rows: list[dict[str, Any]]) -> list[RenderableType]:
    table = Table("strategy", "what it does", "knobs (default)", "choose when", box=None)
    for row in rows:
        knobs = ", ".join(f"{knob['name']} ({knob['default']})" for knob in row["knobs"])
        table.add_row(row["name"], *map(escape, (row["summary"], knobs or "-", row["choose_when"])))
    return [table, "\nnext: giraffe rope show yarn --target-len 16k"]


def _pairs(table: RopeTable, head: Head) -> Iterator[tuple[str, ...]]:
    """Pair, inv_freq, wavelength in tokens and native windows, turns in the window, divisor."""
    window = head.original_max_position_embeddings
    for pair, (value, unscaled) in enumerate(
        zip(table.inv_freq, head.unscaled_inv_freq(), strict=True)
    ):
        wavelength = 2 * math.pi / value
        cells = (value, wavelength, wavelength / window, window / wavelength, unscaled / value)
        yield (str(pair), *(f"{cell:.6g}" for cell in cells))


def _render_table(table: RopeTable, head: Head) -> list[RenderableType]:
    window = head.original_max_position_embeddings
    lengths = f"{format_length(window)} → {format_length(head.target_length)} tokens"
    knobs = ", ".join(f"{key}={value}" for key, value in table.knobs.items())
    grid = Table(
        "pair", "inv_freq", "wavelength", "in windows", "turns in window", "divided by", box=None
    )
    for column in grid.columns:
        column.justify = "right"
    for cells in _pairs(table, head):
        grid.add_row(*cells)
    return [
        f"{table.strategy}: {lengths} (s = {head.factor:g}), head_dim {head.head_dim}, "
        f"rope_theta {head.rope_theta:g}" + (f", {knobs}" if knobs else ""),
        grid,
        f"\nattention factor (cos and sin are multiplied by it): {table.attention_factor:.6f}",
        "\nwritten to config.json:",
        escape(json.dumps(_short(table.rope_parameters), indent=2)),
    ]


def _short(parameters: dict[str, Any]) -> dict[str, Any]:
    """Lists of factors are in the table above already."""
    return {
        key: f"[{len(value)} numbers]" if isinstance(value, list) else value
        for key, value in parameters.items()
    }
