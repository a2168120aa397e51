"""`giraffe export`: a checkpoint or run in the form another runtime takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from giraffe_cli.cli import complete
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson, one_of

EXAMPLES = """
Examples:

giraffe export runs/mine --to gguf

giraffe export runs/mine/model --to gguf --dtype q8_0 --out mine.gguf

giraffe export ./some-downloaded-llama --to gguf --json

giraffe export runs/mine --to adapter --base-id meta-llama/Meta-Llama-3-8B
"""


def _file_dtypes() -> tuple[str, ...]:
    from giraffe_cli.export.gguf_tensors import DTYPES

    return DTYPES


def export(
    checkpoint: Annotated[
        str, typer.Argument(help="A model directory, ours or any Llama, or a run's folder.")
    ],
    to: Annotated[
        str,
        one_of(
            complete.export_target_names,
            "gguf (llama.cpp) or adapter (PEFT, vLLM).",
            complete.export_targets,
            "--to",
        ),
    ],
    dtype: Annotated[
        str | None,
        one_of(
            _file_dtypes,
            "gguf: f16, bf16, f32 or q8_0. Default: the checkpoint's own.",
            complete.file_dtypes,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="What to write. Default: named after the source, beside it.")
    ] = None,
    base_id: Annotated[
        str | None, typer.Option(help="adapter: the base's Hugging Face id, as others know it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for llama.cpp, or a run's adapter for PEFT and vLLM.

    The rotary table goes along exactly, whatever the strategy. What was written is read back and
    held against the source before it gets its name.
    """
    from giraffe_cli.export.base import ExportOptions, make_target, refuse_idle_options

    target, options = make_target(to), ExportOptions(out, dtype, base_id)
    refuse_idle_options(to, target, options)
    console = Console(as_json)
    exported = target.export(checkpoint, options, console)
    console.result(exported.facts, "\n".join(exported.lines))
