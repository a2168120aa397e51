"""Options that several commands take, each once: one name, one help text, one check.

A value outside an option's choices is refused while the command line is read, with exit code 2 and
the nearest of them; a shell completes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from giraffe_cli.cli import complete
from giraffe_cli.errors import UsageError, near_misses

COMPUTATION_TYPES = ("auto", "float32", "bfloat16", "float16")


def a_seed(help: str) -> Any:
    """An option for a seed that torch and numpy both take; another raises UsageError."""

    def check(value: int | None) -> int | None:
        if value is not None and not 0 <= value < 2**63:
            raise UsageError(f"--seed {value}", "a whole number from 0 to 2^63 - 1")
        return value

    return typer.Option(help=help, callback=check)


def one_of(
    known: Iterable[str] | Callable[[], Iterable[str]],
    help: str,
    offered: Callable[[str], Any] | None = None,
    *names: str,
    several: bool = False,
) -> Any:
    """An option that takes one of `known`, which may be asked for late, or `several` by comma;
    `offered` tells a shell more about them. `names` are the option's own where the parameter's do
    not do. A value that is none of them raises UsageError."""

    def choices() -> tuple[str, ...]:
        return tuple(known() if callable(known) else known)

    def check(param: typer.CallbackParam, value: str | None) -> str | None:
        given = [] if value is None else value.split(",") if several else [value]
        wrong = next((one for one in given if one not in choices()), None)
        if wrong is not None:
            option = max(param.opts, key=len)
            raise UsageError(f"{option} {wrong}: no such choice", near_misses(wrong, choices()))
        return value

    def plainly(incomplete: str) -> list[str]:
        return [one for one in choices() if one.startswith(incomplete)]

    return typer.Option(*names, help=help, callback=check, autocompletion=offered or plainly)


def choices_of(path: str) -> Callable[[], tuple[str, ...]]:
    """Gives what the config key `path` may be: `pack.rule` → best-fit, concat, one."""

    def choices() -> tuple[str, ...]:
        from giraffe_cli.config.extend import ExtendConfig

        *sections, leaf = path.split(".")
        section: Any = ExtendConfig
        for name in sections:
            section = section.model_fields[name].annotation
        return get_args(section.model_fields[leaf].annotation)

    return choices


def check_strategies(names: Iterable[str], beside: Iterable[str] = ()) -> None:
    """Every name is a RoPE strategy's, or one of `beside`.

    Raises:
        UsageError: one is not.
    """
    from giraffe_cli.rope.base import strategies

    known = [*strategies(), *beside]
    for name in names:
        if name not in known:
            raise UsageError(f"{name}: no such RoPE strategy", near_misses(name, known))


def _devices() -> Iterable[str]:
    from giraffe_cli.plan.machine import DEVICES

    return DEVICES


TargetLen = Annotated[
    str | None, typer.Option(help="Window the model is to reach: 16k, 1m, 16384.")
]
RequiredTargetLen = Annotated[
    str, typer.Option("--target-len", help="Window the model is to reach: 16k, 1m, 16384.")
]
Stages = Annotated[
    str | None, typer.Option(help="Targets by comma, one trained after the other: 16k,32k.")
]
Model = Annotated[
    str | None,
    typer.Option(help="Local directory, .gguf file or Hugging Face id. Default: calf."),
]
Steps = Annotated[
    int | None, typer.Option(min=0, help="Optimiser steps; 0 writes the zero-shot extension.")
]
Window = Annotated[
    str | None,
    typer.Option(
        help="Training window. Default: the target. A shorter one trains with PoSE, which was not "
        "shown to teach the use of far text."
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        help="YAML file, or the name of a preset: calf-16k, llama3-8b-64k, recipes/yarn-7b-128k.",
        autocompletion=complete.configs,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any config key, over options: train.lora.rank=8; repeatable."),
]
Control = Annotated[
    bool,
    typer.Option("--control", help="Also train at the native window, to tell domain apart."),
]
SequenceParallel = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that share each window, its tokens and heads. Default: 1."),
]


def _strategies_or_auto() -> list[str]:
    from giraffe_cli.config.base import AUTO
    from giraffe_cli.rope.base import strategies

    return [AUTO, *strategies()]


Rope = Annotated[
    str | None,
    one_of(
        _strategies_or_auto,
        "RoPE strategy, see `giraffe rope list`; auto: the best on your text, compared first, of "
        "as many as a tenth of the predicted training time lets it read. Default: auto; of calf: "
        "yarn.",
        complete.strategies_or_auto,
    ),
]
Factors = Annotated[
    Path | None,
    typer.Option(help="Divisors of `giraffe rope search`, or published: --rope longrope."),
]
Nodes = Annotated[
    int | None,
    typer.Option(min=1, help="Machines that train together, this command on each. Default: 1."),
]
OnExistingRope = Annotated[
    str | None,
    one_of(
        choices_of("rope.on_existing"),
        "A model that is scaled already: refuse, compose, replace. Default: refuse.",
    ),
]
Device = Annotated[
    str | None,
    one_of(
        _devices,
        "A machine to plan for: h100, h200, a100, rtx4090, cpu. Default: this one; h100 with "
        "--gpus.",
        complete.devices,
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Memory of a device (of the host on a CPU): 80GB. Speeds stay those of --device."
    ),
]
HostMemory = Annotated[
    str | None,
    typer.Option(
        help="Free host memory beside the GPUs of each machine: 1TB. Default: what this machine "
        "has, and of one that is named as much as its setting takes."
    ),
]
DeviceCount = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="How many GPUs the machine has: h100 without --device."),
]
OnBad = Annotated[
    str | None,
    one_of(choices_of("pack.on_bad"), "Unreadable records: fail or skip. Default: fail."),
]
ConfigDtype = Annotated[
    str | None,
    one_of(
        choices_of("dtype"),
        "Computation type: float32, bfloat16, or auto: as the checkpoint is stored, float32 where "
        "the machine has no bfloat16. Default: auto.",
    ),
]
Dtype = Annotated[
    str,
    one_of(
        COMPUTATION_TYPES,
        "Computation type: float32, bfloat16, float16, or auto: bfloat16 for weights in 16 bits, "
        "float32 for others and where the machine has no bfloat16.",
    ),
]
Chat = Annotated[
    bool,
    typer.Option("--chat", help="Ask through the tokenizer's chat template. Default: bare text."),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickled weights (pytorch_model.bin), tensors alone; else they are refused.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
