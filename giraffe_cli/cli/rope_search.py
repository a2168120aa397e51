"""`giraffe rope search`: divisors of its own for each pair, searched in tens of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from giraffe_cli.checkpoint_source import EMBEDDED
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import (
    AllowPickle,
    AsJson,
    Dtype,
    Model,
    OnExistingRope,
    RequiredTargetLen,
)
from giraffe_cli.cli.tuning import (
    Data,
    Extending,
    Fitness,
    Seed,
    default_out,
    open_for_tuning,
)
from giraffe_cli.units import counted

SEARCH_EXAMPLES = """
Examples:

giraffe rope search --target-len 16k --evaluations 32

giraffe rope search --model ./smollm2 --data books.jsonl.gz --target-len 16k --documents 2

giraffe extend --target-len 16k --factors runs/search-calf-16k/factors.json
"""


def search(
    target_len: RequiredTargetLen,
    model: Model = None,
    data: Data = None,
    evaluations: Annotated[
        int, typer.Option(min=2, help="Tables that are read, the seeds among them.")
    ] = 64,
    documents: Annotated[
        int, typer.Option(min=1, help="Documents (or prompts of look-ups) that the search reads.")
    ] = 4,
    held_out: Annotated[
        int, typer.Option(min=1, help="Other documents, on which its result is proven.")
    ] = 8,
    fitness: Fitness = "nll",
    on_existing_rope: OnExistingRope = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: runs/search-MODEL-TARGET.")
    ] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Search a divisor for each pair, from YaRN and NTK on, in the manner of LongRoPE.

    First where the critical pair lies, then the slow pairs, then all, under the rule that divisors
    never fall. What is found is held against its best seed on documents that the search has not
    read, and it says so when it is no better. The same command resumes a stopped search.
    """
    from giraffe_cli.cli.tuning_text import search_text
    from giraffe_cli.lock import held
    from giraffe_cli.report.comparison import write_search
    from giraffe_cli.tune.search import FACTORS, SEARCH
    from giraffe_cli.tune.search import search as hunt

    console, model = Console(as_json), model or EMBEDDED
    folder = out or default_out("search", model, target_len)
    with held(folder):
        opened = open_for_tuning(
            model, data, target_len, on_existing_rope, dtype, folder, console, allow_pickle,
            SEARCH, documents=documents + held_out, seed=seed, fitness=fitness, needles=False,
        )  # fmt: skip
        others = max(0, opened.evidence.count - documents)  # of none the search is refused
        console.info(
            f"{evaluations} tables on {counted(documents, 'sample')} of {target_len}, then the "
            f"best and its seed on {others} others; {folder} keeps what is read"
        )
        result = hunt(
            opened.reader, opened.head, opened.evidence, console,
            evaluations=evaluations, documents=documents, seed=seed, out=folder,
        )  # fmt: skip
        write_search(result, folder)
    factors = folder / FACTORS
    extending = Extending(model, data, target_len, on_existing_rope, allow_pickle)
    seed_line = extending.line(result["best_seed"]["origin"], {})
    line = extending.line("longrope", {}, factors) if result["improved"] else seed_line
    where = f"\nfactors  {factors}\nresults  {folder / SEARCH}, pictures beside it"
    console.result(
        {**result, "out": str(folder), "factors": str(factors)},
        [*search_text(result), where, f"next: {line}"],
    )
