"""Options that several commands take, each once: one name, one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from giraffe_cli.cli import complete
from giraffe_cli.errors import InvalidInput

TargetLen = Annotated[
    str | None, typer.Option(help="Window the model is to reach: 16k, 1m, 16384.")
]
Stages = Annotated[
    str | None, typer.Option(help="Targets by comma, one trained after the other: 16k,32k.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Local directory, .gguf file or Hugging Face id. Default: calf."),
]
Steps = Annotated[
    int | None, typer.Option(help="Optimiser steps; 0 writes the zero-shot extension.")
]
Window = Annotated[
    str | None, typer.Option(help="Training window; shorter than the target trains with PoSE.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(help="YAML file; `configs/` has presets.", autocompletion=complete.configs),
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Any config key: train.lora.rank=8.")
]
Control = Annotated[
    bool,
    typer.Option("--control", help="Also train at the native window, to tell domain apart."),
]
SequenceParallel = Annotated[
    int | None,
    typer.Option(help="Processes that share each window, its tokens and heads. Default: 1."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, or auto: as the checkpoint is stored.",
        autocompletion=complete.DTYPES,
    ),
]


def check_dtype(dtype: str) -> None:
    """Raises InvalidInput for what is no computation type."""
    known = ("auto", "float32", "bfloat16", "float16")
    if dtype not in known:
        raise InvalidInput(f"unknown --dtype `{dtype}`", f"known: {', '.join(known)}")
