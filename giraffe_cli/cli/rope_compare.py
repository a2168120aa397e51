"""`giraffe rope compare`: which table suits this checkpoint, this text and this length."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import (
    AllowPickle,
    AsJson,
    Dtype,
    Model,
    OnExistingRope,
    RequiredTargetLen,
    check_strategies,
)
from giraffe_cli.cli.tuning import (
    Data,
    Extending,
    Fitness,
    Seed,
    default_out,
    knobs_by_strategy,
    open_for_tuning,
)
from giraffe_cli.errors import UsageError
from giraffe_cli.units import counted

COMPARE_EXAMPLES = """
Examples:

giraffe rope compare --target-len 16k --minutes 5

giraffe rope compare yarn ntk --model ./smollm2 --data books.jsonl.gz --target-len 16k --all

giraffe rope compare yarn longrope --set longrope.factors=factors.json --target-len 16k --json
"""


def compare(
    target_len: RequiredTargetLen,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Strategies of `giraffe rope list`. Default: all.",
            autocompletion=complete.strategies,
        ),
    ] = None,
    model: Model = None,
    data: Data = None,
    documents: Annotated[
        int, typer.Option(min=1, help="Documents at the most, the longest; look-ups likewise.")
    ] = 8,
    minutes: Annotated[
        float, typer.Option(help="Time limit; run again with more, and it goes on.")
    ] = 30.0,
    every: Annotated[
        bool,
        typer.Option("--all", help="Drop nothing early: every setting on every document."),
    ] = False,
    no_needles: Annotated[
        bool, typer.Option("--no-needles", help="Leave the look-ups out.")
    ] = False,
    fitness: Fitness = "nll",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Knobs of a strategy instead of those that are tried: yarn.beta_fast=64; "
            "repeatable.",
        ),
    ] = None,
    on_existing_rope: OnExistingRope = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/compare-MODEL-TARGET.")
    ] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Hold every RoPE strategy against your text before any training, and recommend one.

    The model is loaded once and only its table changes. Loss of the same tokens at the native
    window, its doublings and the target, what it costs within the native window, and the loss of
    looked-up numbers; settings that are hopeless are dropped after a document or two.
    """
    from giraffe_cli.cli.tuning_text import comparison_table
    from giraffe_cli.lock import held
    from giraffe_cli.report.comparison import write_comparison
    from giraffe_cli.tune.compare import COMPARISON, Budget
    from giraffe_cli.tune.compare import compare as bake_off
    from giraffe_cli.tune.searched import fitted_on, searched_for_another
    from giraffe_cli.tune.settings import settings as make_settings

    console, model = Console(as_json), model or EMBEDDED
    check_strategies(names or [])
    if not 0 < minutes < math.inf:
        raise UsageError(f"--minutes {minutes:g}", "a time above 0")
    if no_needles and fitness != "nll":
        raise UsageError(f"--no-needles and --fitness {fitness}", "leave one of them out")
    folder = out or default_out("compare", model, target_len)
    with held(folder):
        opened = open_for_tuning(
            model, data, target_len, on_existing_rope, dtype, folder, console, allow_pickle,
            COMPARISON, documents=documents, seed=seed, fitness=fitness, needles=not no_needles,
        )  # fmt: skip
        knobs = knobs_by_strategy(settings or [])
        found, left_out = make_settings(opened.head, names or [], knobs)
        given, head = knobs.get("longrope", {}).get("factors"), opened.head
        warned = fitted_on(given, opened.evidence)
        if given:
            asked = (head.target_length, head.rope_theta, head.original_max_position_embeddings)
            warned += searched_for_another(given, *asked, opened.reader.checkpoint.digest)
        for problem in left_out:
            console.warn(f"left out: {problem}")
        console.info(
            f"{counted(len(found), 'table')} on up to {counted(opened.evidence.count, 'sample')} "
            f"of {target_len}, within {minutes:g} min; {folder} keeps what is read"
        )
        result = bake_off(
            opened.reader, found, opened.head, opened.evidence, console,
            budget=Budget(60 * minutes), halves=not every, seed=seed, out=folder,
            warned=warned,
        )  # fmt: skip
        write_comparison(result, folder)
    extending = Extending(model, data, target_len, on_existing_rope, allow_pickle)
    where = f"\nresults  {folder / COMPARISON}, pictures beside it"
    console.result(
        {**result, "out": str(folder)},
        [
            *comparison_table(result, console.out.width),
            where,
            *_next(result, extending, folder),
        ],
    )


def _next(result: dict[str, Any], extending: Extending, folder: Path) -> list[str]:
    """The command that uses what is recommended; factors go through a file."""
    chosen = result["recommendation"]
    if chosen is None:
        return ["next: the same command with more --minutes"]
    knobs = dict(chosen["knobs"])
    if isinstance(knobs.get("factors"), list | tuple):
        from giraffe_cli.rundir import write_json

        write_json(folder / "factors.json", {"long_factor": list(knobs.pop("factors"))})
        return [f"next: {extending.line('longrope', knobs, folder / 'factors.json')}"]
    return [f"next: {extending.line(chosen['strategy'], knobs)}"]
