"""`giraffe rope list|show|compare|search`: the strategies, their tables, and which to take."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson, OnExistingRope, RequiredTargetLen, check_strategies
from giraffe_cli.cli.rope_compare import COMPARE_EXAMPLES, compare
from giraffe_cli.cli.rope_search import SEARCH_EXAMPLES, search
from giraffe_cli.cli.rope_text import (
    describe,
    render_list,
    render_several,
    render_table,
    with_facts,
)
from giraffe_cli.errors import InvalidInput, UsageError, first_line
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.rope.base import Head, RopeTable, make_table, strategies
from giraffe_cli.rope.scheme import position_schemes
from giraffe_cli.units import parse_length

LIST_EXAMPLES = """
Examples:

giraffe rope list

giraffe rope list --json
"""

SHOW_EXAMPLES = """
Examples:

giraffe rope show yarn --target-len 16k

giraffe rope show ntk --target-len 32k --head-dim 128 --rope-theta 10000 --original-len 4k

giraffe rope show yarn --model runs/base --target-len 16k --set beta_fast=64 --json

giraffe rope show all --target-len 16k --plot rope.png
"""

EVERY = "all"

app = typer.Typer(
    help="The RoPE strategies, their tables, and which of them to take.", no_args_is_help=True
)
app.command("compare", epilog=COMPARE_EXAMPLES)(compare)
app.command("search", epilog=SEARCH_EXAMPLES)(search)


@app.command("list", epilog=LIST_EXAMPLES)
def list_strategies(as_json: AsJson = False) -> None:
    """List the RoPE strategies: what each does, its knobs, what runs it, when to choose it."""
    rows = [describe(name, kind) for name, kind in strategies().items()]
    positions = [describe(name, kind) for name, kind in position_schemes().items()]
    Console(as_json).result(
        {"strategies": rows, "positions": positions}, render_list(rows, positions)
    )


@app.command("show", epilog=SHOW_EXAMPLES)
def show(
    target_len: RequiredTargetLen,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"Strategies of `giraffe rope list`, or `{EVERY}`. Default: yarn.",
            autocompletion=complete.strategies_or_all,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Checkpoint whose shape it is. Default: calf.")
    ] = None,
    head_dim: Annotated[
        int | None, typer.Option(help="Or the shape itself: dimensions of a head.")
    ] = None,
    rope_theta: Annotated[
        float | None,
        typer.Option(
            help="Base of the unscaled table. Default: the checkpoint's; 10000 with --head-dim."
        ),
    ] = None,
    original_len: Annotated[
        str | None,
        typer.Option(help="Native window. Default: the checkpoint's; 4k with --head-dim."),
    ] = None,
    on_existing_rope: OnExistingRope = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A knob of the strategy: beta_fast=64; repeatable."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the strategies side by side into this PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the table of a strategy: each pair's frequency, wavelength, turns in the native
    window and divisor, the pairs that never completed a turn, the attention factor, and the config
    that will be written. Several strategies are shown side by side."""
    check_strategies(names or [], beside=names if names == [EVERY] else [])
    head = _head(
        model, head_dim, rope_theta, original_len, parse_length(target_len), on_existing_rope
    )
    tables = _tables(names or ["yarn"], _knobs(settings or []), head)
    console = Console(as_json)
    if plot:
        _draw(plot, tables, head, console)
    if len(tables) == 1:
        console.result(with_facts(tables[0], head), render_table(tables[0], head))
    else:
        shown = {"tables": [with_facts(table, head) for table in tables]}
        console.result(shown, render_several(tables, head))


def _tables(names: list[str], knobs: dict[str, Any], head: Head) -> list[RopeTable]:
    """One table a name; `all` is every strategy, those that need knobs with their example's."""
    known = strategies()
    chosen = sorted(known) if names == [EVERY] else names
    if len(chosen) == 1:
        return [make_table(chosen[0], knobs, head)]
    if knobs:
        raise UsageError("--set goes with one strategy", "name one strategy, or leave out --set")
    return [make_table(name, known[name].example(head), head) for name in chosen]


def _draw(path: Path, tables: list[RopeTable], head: Head, console: Console) -> None:
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path}: a PNG is written", "name a file that ends in .png")
    from giraffe_cli.report.rope_plot import rope_plot
    from giraffe_cli.rundir import atomic_open

    with atomic_open(path) as handle:
        handle.write(rope_plot(tables, head).png)
    console.info(f"wrote {path}")


def _head(
    model: str | None,
    head_dim: int | None,
    rope_theta: float | None,
    original_len: str | None,
    target_length: int,
    on_existing: str | None,
) -> Head:
    """The shape from the options alone, or from a checkpoint with θ and window overridden."""
    if head_dim is not None:
        if model is not None:
            raise UsageError("--model and --head-dim both name a shape", "give one of them")
        if on_existing is not None:
            raise UsageError(
                f"--on-existing-rope {on_existing} has no effect on a shape given by --head-dim",
                "pass --model, or leave it out",
            )
        theta = 10000.0 if rope_theta is None else rope_theta
        return _checked(Head(head_dim, theta, parse_length(original_len or "4k"), target_length))
    from giraffe_cli.checkpoint import inspect, refuse_scaled

    # Only a GGUF is converted, and only its shape is wanted here.
    with tempfile.TemporaryDirectory() as work_dir:
        checkpoint = inspect(model or "calf", Path(work_dir))
    chosen = on_existing or "refuse"
    if chosen == "refuse":
        refuse_scaled(checkpoint, target_length)
    head = checkpoint.head(target_length, chosen)
    changes: dict[str, Any] = {} if rope_theta is None else {"rope_theta": rope_theta}
    if head.base_table is not None and (rope_theta, original_len) != (None, None):
        raise UsageError(
            "--rope-theta and --original-len say what the base's table is, and "
            "--on-existing-rope compose takes the table that it has",
            "leave them out, or pass --on-existing-rope replace",
        )
    if original_len is not None:
        changes["original_max_position_embeddings"] = parse_length(original_len)
    return _checked(dataclasses.replace(head, **changes))


def _checked(head: Head) -> Head:
    if head.head_dim < 4 or head.head_dim % 2:
        raise InvalidInput(f"head_dim is {head.head_dim}, needs an even integer of at least 4")
    if not 1 < head.rope_theta < float("inf"):
        raise InvalidInput(f"rope_theta is {head.rope_theta:g}, needs a number above 1")
    return head


def _knobs(settings: list[str]) -> dict[str, Any]:
    knobs = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set {setting}: no `knob=value`", "write --set beta_fast=64")
        try:
            knobs[key.strip()] = parse_yaml(text)
        except ValueError as error:
            raise UsageError(f"--set {setting}: no plain YAML: {first_line(error)}") from error
    return knobs
