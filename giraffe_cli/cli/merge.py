"""`giraffe merge`: what a run trained into standalone weights, again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson
from giraffe_cli.errors import GiraffeError, UsageError
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.run_files import adapter_of, base_of, read_run, report_of
from giraffe_cli.rundir import read_kept

EXAMPLES = """
Examples:

giraffe merge runs/mine

giraffe merge runs/mine --out ./my-llama-16k

giraffe merge runs/mine --onto ./my-llama-instruct --out ./my-llama-instruct-16k

giraffe merge runs/mine --json
"""


def merge(
    run: Annotated[Path, typer.Argument(help="Folder that `giraffe extend` wrote.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN/model.")] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            help="Extend another fine-tune of the run's base, such as its instruct model, by what "
            "the run trained: a directory, .gguf file or Hugging Face id. Needs --out."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Merge what a run trained into its base: a plain Hugging Face directory, proven after writing.

    Use it to write the model elsewhere, or again after it was deleted. What is there already and
    still holds is not written again. With --onto the weights of another fine-tune of the same base
    are moved as far as the run moved its base's; they keep their tokenizer and chat template.
    """
    is_own = out is None or out.resolve() == (run / "model").resolve()
    if onto is not None and is_own:
        raise UsageError("--onto needs --out, another folder than the run's model", "--out DIR")
    config, table = read_run(run)

    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.lock import held, held_beside
    from giraffe_cli.merge import merge_stage
    from giraffe_cli.merge_checks import check_same_base
    from giraffe_cli.merge_onto import adapter_for, check_sibling, folder_beside
    from giraffe_cli.verify import raise_if_defective, verify_directory

    console = Console(as_json)
    adapter, final, told = adapter_of(run, config), out or run / "model", None
    with held(run) if is_own else held_beside(final), folder_beside(final) as work:
        checkpoint = inspect(base_of(run, config), run, config.allow_pickle)
        if adapter is not None:
            check_same_base(adapter, checkpoint)
        if onto is not None:
            base, checkpoint = checkpoint, inspect(onto, work, config.allow_pickle)
            told = {"model": onto, "distance": check_sibling(base, checkpoint, console)}
            adapter = adapter and adapter_for(adapter, base, checkpoint, work / "adapter", console)
        # the run's own may be of another training, such as a shorter one
        model_dir = merge_stage(checkpoint, adapter, table, final, console, replaces=is_own)
        proof = verify_directory(
            model_dir, adapter_dir=adapter, base=checkpoint.path, table=table, reporter=console
        )
    raise_if_defective(model_dir, proof, GiraffeError)
    if onto is None and not (model_dir / "README.md").exists():  # one that is there may be edited
        _write_card(run, model_dir, console)
    console.result(*summary(model_dir, table, proof, told))


def _write_card(run: Path, model_dir: Path, console: Console) -> None:
    """The model's card with what the run measured, where its report is of this very training."""
    from giraffe_cli.report.card import write_card

    report = report_of(run)
    if report is None:
        console.info(f"no model card is written: {run} has no report of this training")
    else:
        write_card(report, model_dir, read_kept(run / "plan.json") or {})


def summary(
    model_dir: Path, table: RopeTable, proof: dict[str, Any], onto: dict[str, Any] | None
) -> tuple[dict[str, Any], str]:
    """The JSON object and the lines that say the same."""
    value = {
        "model_dir": str(model_dir),
        "strategy": table.strategy,
        "native_length": table.original_max_position_embeddings,
        "target_length": table.target_length,
        "onto": onto,
        "verify": proof,
    }
    next_step = f"giraffe eval {shlex.quote(str(model_dir))}"
    lines = [
        f"model: {model_dir}",
        f"window: {table.target_length} tokens ({table.strategy})",
        f"verified: {len(proof['checks'])} checks",
    ]
    if onto:
        name, distance = onto["model"], onto["distance"]
        lines.insert(1, f"onto: {name}, whose weights lie {distance:.2%} from the run's base")
        next_step += f" --base {shlex.quote(name)} --data TEXT"
    return value, "\n".join([*lines, f"next: {next_step}"])
