"""`giraffe doctor`: what is installed, what the machine has, what is missing and how to add it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.environment import examine
from giraffe_cli.cli.options import AsJson
from giraffe_cli.errors import InvalidInput
from giraffe_cli.units import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """
Examples:

giraffe doctor

giraffe doctor runs/calf-16k/model

giraffe doctor --json
"""


def doctor(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(help="A checkpoint or run folder: adds its serve lines, and checks them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show versions, devices and disk, what is missing, and the command that adds it.

    With a CHECKPOINT also the lines that serve it with vLLM and llama.cpp, held against its files.
    Ends with 1 when a required package is missing or too old, with 3 when a serve line and the
    checkpoint do not fit.
    """
    console = Console(as_json)
    found = examine()
    if checkpoint is not None:
        found |= serving(checkpoint)
    console.result(found, [_table(found), *_closing(found)])
    if not found["ok"]:
        raise typer.Exit(1)
    if not all(one["ok"] for one in found.get("serve_checks", {}).values()):
        raise typer.Exit(3)


def serving(checkpoint: Path) -> dict[str, Any]:
    """The serve lines of a checkpoint, or of the `model/` inside a run folder; whether they fit its
    files, and which engines are installed here.

    Raises:
        InvalidInput: no checkpoint there, or a config that is none.
    """
    from giraffe_cli.checkpoint_files import read_config
    from giraffe_cli.report.serve import serve_lines
    from giraffe_cli.report.serve_check import check_serving, engines

    run = (checkpoint / "model" / "config.json").is_file()
    folder = checkpoint / "model" if run else checkpoint
    if not (folder / "config.json").is_file():
        is_run = (checkpoint / "run.yaml").is_file()
        raise InvalidInput(
            f"{checkpoint} holds no config.json",
            f"giraffe merge {shlex.quote(str(checkpoint))} writes the model of a trained run"
            if is_run
            else "name a checkpoint directory, or a run folder with a model/ inside",
        )
    read_config(folder)
    return {
        "serve": serve_lines(folder),
        "serve_checks": check_serving(folder),
        "engines": engines(),
    }


def _table(found: dict[str, Any]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("what", title=f"giraffe {found['giraffe']}")
    table.add_column("found", overflow="fold")
    table.add_column("needed", overflow="fold")
    table.add_row("python", found["python"], "", end_section=True)
    for name, package in found["packages"].items():
        state = package["installed"] or "missing"
        table.add_row(name, state, package["needed"] if package["ok"] else f"✗ {package['needed']}")
    table.add_section()
    for extra, entry in found["extras"].items():
        have = ", ".join(f"{name} {version}" for name, version in entry["installed"].items())
        missing = f"missing: {', '.join(entry['missing'])}" if entry["missing"] else ""
        table.add_row(escape(f"optional [{extra}]"), have or "–", missing)
    table.add_section()
    for what, value in _machine(found):
        table.add_row(what, escape(value), "")
    return table


def _machine(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for index, gpu in enumerate(found["devices"]):
        precision = "bfloat16" if gpu["bfloat16"] else "no bfloat16"
        yield f"gpu {index}", f"{gpu['name']}, {format_bytes(gpu['memory_bytes'])}, {precision}"
    if not found["devices"]:
        yield "gpu", "none visible; everything runs on the CPU"
    unit = found["cpu"]
    precision = "bfloat16" if unit["bfloat16"] else "no bfloat16: computes in float32"
    yield (
        "cpu",
        f"{unit['cores']} cores, {unit['torch_threads']} torch threads, "
        f"{unit['capability']}, {precision}",
    )
    memory = found["memory_bytes"]
    if memory["total"]:
        yield "memory", f"{format_bytes(memory['free'])} free of {format_bytes(memory['total'])}"
    space = found["disk"]
    yield (
        "disk",
        f"{format_bytes(space['free_bytes'])} free of {format_bytes(space['total_bytes'])} "
        f"at {space['folder']}",
    )
    yield "platform", f"{found['platform']}, {sys.executable}"


def _checked(found: dict[str, Any]) -> Iterator[str]:
    for name, one in found["serve_checks"].items():
        if one["ok"]:
            yield f"✓ {name}: {one['found']}"
            continue
        hint = f"; {one['hint']}" if "hint" in one else ""
        yield f"✗ {name}: {one['found']}, needs {one['expected']}{hint}"
    absent = [name for name, there in found["engines"].items() if not there]
    if absent:
        yield f"not installed here: {', '.join(absent)}"


def _closing(found: dict[str, Any]) -> list[str]:
    from rich.markup import escape

    lines = [f"problem: {problem}" for problem in found["problems"]]
    lines += [
        f"optional {extra}: {entry['install']}"
        for extra, entry in found["extras"].items()
        if entry["install"]
    ]
    if "serve" in found:
        lines += ["", "serve it:", *found["serve"], "", *_checked(found)]
    elif found["ok"]:
        lines += ["ready: giraffe extend --target-len 16k"]
    return [escape(line) for line in lines]
