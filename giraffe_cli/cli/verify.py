"""`giraffe verify`: is this directory portable, and does it hold what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson
from giraffe_cli.errors import InvalidInput, UsageError

EXAMPLES = """
Examples:

giraffe verify runs/mine/model

giraffe verify runs/mine/model --adapter runs/mine/adapter --base ./SmolLM2-135M

giraffe verify ./some-downloaded-llama --json

giraffe verify ./someones-merge --base ./what-it-was-made-from
"""


def verify(
    checkpoint: Annotated[Path, typer.Argument(help="A model directory, ours or any Llama.")],
    adapter: Annotated[
        Path | None, typer.Option(help="Adapter that was merged: compares logits; needs --base.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="Model it was made from: shows scaling, θ, vocabulary or heads lost."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also run one pass over the whole target length.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a model directory: files, config keys, tokenizer, weights, rotary table, logits.

    Says what transformers 5 and 4, vLLM and llama.cpp each do with it. Loading is done by stock
    transformers in a process that never imports giraffe, and only when the files are worth it. A
    defective directory, ours or anybody's, ends with exit code 3, each difference named with its
    remedy.
    """
    if adapter and not base:
        raise UsageError("--adapter needs --base", "add --base DIR, the model it was trained on")
    for folder in (checkpoint, adapter, base):
        if folder and not folder.is_dir():
            raise InvalidInput(f"{folder} is no directory", "name a local model directory")

    from giraffe_cli.verify import raise_if_defective, verify_directory

    console = Console(as_json)
    proof = verify_directory(
        checkpoint, adapter_dir=adapter, base=base, full=full, reporter=console
    )
    console.result(proof, render(proof))
    raise_if_defective(checkpoint, proof, InvalidInput)


def render(proof: dict[str, Any]) -> list[RenderableType]:
    """Checks and runtimes for people; `ok` and `FAILED` are words, not colours."""
    checks = Table("check", "", "found", box=None, padding=(0, 2, 0, 0))
    for name, entry in proof["checks"].items():
        verdict = "[green]ok[/]" if entry["ok"] else "[bold red]FAILED[/]"
        checks.add_row(name, verdict, escape(str(entry["found"])))
    readers = Table("runtime", "with this directory", box=None, padding=(0, 2, 0, 0))
    for name, sentence in proof["runtimes"].items():
        readers.add_row(name, escape(sentence))
    return [checks, "", readers]
