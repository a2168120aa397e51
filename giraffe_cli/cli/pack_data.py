"""`giraffe pack-data`: documents go in, fixed-length training windows with statistics come out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import InvalidInput, raise_together
from giraffe_cli.units import format_length, parse_length

if TYPE_CHECKING:
    from rich.table import Table

    from giraffe_cli.config import PackConfig

EXAMPLES = """
Examples:

giraffe pack-data books.jsonl.gz --tokenizer ./llama --window 16k --out packed/books

giraffe pack-data docs/ notes.md --tokenizer ./llama --window 8k --out packed/mine --on-bad skip

giraffe pack-data python-stdlib --tokenizer calf --window 2k --out packed/stdlib --hold-out 0.2
"""


def pack_data(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...", help="JSONL(.gz) file, text file or folder, or `python-stdlib`."
        ),
    ],
    tokenizer: Annotated[
        str, typer.Option(help="Checkpoint whose tokenizer is used: a directory, or calf.")
    ],
    window: Annotated[str, typer.Option(help="Tokens in a window: 16k, 4096.")],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    hold_out: Annotated[
        float | None,
        typer.Option(help="Share of documents kept out for evaluation. Default: 0.1."),
    ] = None,
    on_bad: Annotated[
        str | None, typer.Option(help="Unreadable records: `fail` (default) or `skip`.")
    ] = None,
    text_field: Annotated[
        str | None, typer.Option(help="JSONL field with the text. Default: text.")
    ] = None,
    min_piece: Annotated[
        int | None, typer.Option(help="Shorter pieces are dropped and counted. Default: 32.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the order of the windows.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Pack documents into training windows for `giraffe extend --data` and other trainers.

    Only documents longer than the window are cut; the rest are fitted together whole, and every
    row records its pieces. The same command on the same input writes the same bytes.
    """
    from giraffe_cli.corpus.packing import pack_stage

    console = Console(as_json)
    flags = {
        "hold_out": hold_out,
        "on_bad": on_bad,
        "text_field": text_field,
        "min_piece": min_piece,
    }
    config = _config({name: value for name, value in flags.items() if value is not None})
    tokens = parse_length(window)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _tokenizer_folder(tokenizer, Path(scratch))
        stats = pack_stage(sources, folder, tokens, config, seed, out, console, replace=False)
    length = format_length(tokens)
    following = f"giraffe extend --model {tokenizer} --data {out} --target-len {length}"
    console.result(
        {"out": str(out), **stats}, [_table(stats, out), "", "next:", escape(f"  {following}")]
    )


def _config(values: dict[str, Any]) -> PackConfig:
    """The `pack` section from flags.

    Raises:
        InvalidInput: a value out of range; the flag is named.
    """
    from pydantic import ValidationError

    from giraffe_cli.config import PackConfig

    try:
        return PackConfig(**values)
    except ValidationError as error:
        problems = [
            f"--{str(entry['loc'][0]).replace('_', '-')} {entry['input']}: {entry['msg']}"
            for entry in error.errors()
        ]
        raise_together(problems, "pack-data")
        raise


def _tokenizer_folder(named: str, scratch: Path) -> Path:
    """The folder with `tokenizer.json`: as named, or of the checkpoint that is named."""
    path = Path(named)
    if path.is_dir():
        return path
    if path.is_file() and path.suffix != ".gguf":
        raise InvalidInput(f"--tokenizer {named} is a file", "name the directory that holds it")
    from giraffe_cli.checkpoint import inspect

    return inspect(named, scratch).path


def _table(stats: dict[str, Any], out: Path) -> Table:
    from rich.table import Table

    held, capacity = stats["documents_held_out"], stats["windows"] * stats["window"]
    rows = {
        "documents": f"{stats['documents']:,}, of them {held:,} held out for evaluation",
        "tokens": f"{stats['tokens_in']:,} in, {stats['tokens_kept']:,} kept, "
        f"{stats['tokens_dropped']:,} dropped as too short",
        "windows": f"{stats['windows']:,} of {stats['window']:,} tokens",
        "fill": f"{stats['fill']:.2%} ({stats['padding']:,} of {capacity:,} tokens empty)",
        "documents longer than the window": f"{stats['documents_longer_than_window']:,}",
        "documents split": f"{stats['documents_split']:,}",
        "tokens in documents at least the window long": f"{stats['long_share']:.1%}",
    }
    table = Table("", "", title=escape(f"packed {out}"), show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
