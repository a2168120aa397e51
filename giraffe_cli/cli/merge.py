"""`giraffe merge`: what a run trained into standalone weights, again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson
from giraffe_cli.errors import GiraffeError
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.run_files import adapter_of, base_of, read_run

EXAMPLES = """
Examples:

giraffe merge runs/mine

giraffe merge runs/mine --out ./my-llama-16k

giraffe merge runs/mine --json
"""


def merge(
    run: Annotated[Path, typer.Argument(help="Folder that `giraffe extend` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN/model.")] = None,
    as_json: AsJson = False,
) -> None:
    """Merge what a run trained into its base: a plain Hugging Face directory, proven after writing.

    Use it to write the model elsewhere, or again after it was deleted. What is there already and
    still holds is not written again.
    """
    config, table = read_run(run)

    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.lock import held, held_beside
    from giraffe_cli.merge import merge_stage
    from giraffe_cli.merge_checks import check_same_base
    from giraffe_cli.verify import raise_if_defective, verify_directory

    console = Console(as_json)
    adapter = adapter_of(run, config)
    with held(run) if out is None else held_beside(out):
        checkpoint = inspect(base_of(run, config), run, config.allow_pickle)
        if adapter is not None:
            check_same_base(adapter, checkpoint)
        model_dir = merge_stage(checkpoint, adapter, table, out or run / "model", console)
        proof = verify_directory(
            model_dir, adapter_dir=adapter, base=checkpoint.path, table=table, reporter=console
        )
    raise_if_defective(model_dir, proof, GiraffeError)
    console.result(*summary(model_dir, table, proof))


def summary(model_dir: Path, table: RopeTable, proof: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The JSON object and the lines that say the same."""
    value = {
        "model_dir": str(model_dir),
        "strategy": table.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": table.target_length,
        "verify": proof,
    }
    lines = (
        f"model: {model_dir}\n"
        f"window: {table.target_length} tokens ({table.strategy})\n"
        f"verified: {len(proof['checks'])} checks\n"
        f"next: giraffe eval {shlex.quote(str(model_dir))}"
    )
    return value, lines
