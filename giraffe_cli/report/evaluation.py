"""What `giraffe eval` leaves for readers beside `results.json`: `report.html` and its pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.checkpoint_source import short_name
from giraffe_cli.errors import InvalidInput
from giraffe_cli.report.evaluation_part import EvaluationPart
from giraffe_cli.report.plots import write_plots
from giraffe_cli.report.scored import Scored
from giraffe_cli.report.templates import render
from giraffe_cli.report.verdicts import evaluation_verdicts
from giraffe_cli.rundir import atomic_open, make_folder, read_json, write_json
from giraffe_cli.units import format_length

TEMPLATE, PAGE, COMMAND = "eval.html.j2", "report.html", "command.json"


def write_evaluation(
    results: Mapping[str, Any], out: Path, command: Sequence[str] | None = None
) -> Path:
    """Write `report.html` and every picture as PNG and SVG into `out`; the page's path.

    Args:
        results: content of `results.json`.
        command: the words of the command line that made it, kept in `command.json`; None: those
            kept there before.

    Raises:
        InvalidInput: the file that holds the words is damaged.
        GiraffeError: a file cannot be written.
    """
    make_folder(out)
    if command is not None:
        write_json(out / COMMAND, {"command": list(command)})
    words = kept_command(out)
    scored = Scored.of_evaluation(results)
    part = EvaluationPart.of(scored)
    write_plots(part.all_plots, out)
    with atomic_open(out / PAGE, "w") as handle:
        handle.write(evaluation_page(part, out, words))
    return out / PAGE


def kept_command(out: Path) -> list[str]:
    """The words of the command line that made an evaluation; empty where they were not kept.

    Raises:
        InvalidInput: the file that should hold them is damaged or another one.
    """
    path = out / COMMAND
    if not path.exists():
        return []
    kept = read_json(path)
    words = kept.get("command") if isinstance(kept, dict) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InvalidInput(
            f"{path} is no {COMMAND} of giraffe eval: it holds no list `command` of words",
            "delete it; the page then names no command",
        )
    return words


def evaluation_page(part: EvaluationPart, out: Path, command: Sequence[str]) -> str:
    """The page's HTML; `command` as `kept_command` gives it."""
    scored = part.scored
    return render(
        TEMPLATE,
        {
            "title": page_title(scored, subject_name(command, out)),
            "lead": _lead(scored),
            "verdicts": evaluation_verdicts(scored),
            "warnings": list(dict.fromkeys(map(str, scored.results.get("warnings", [])))),
            "part": part,
            "gates": scored.results.get("gates", []),
            "control": None,
            "commands": repeat_commands(command, out),
        },
    )


def subject_name(command: Sequence[str], out: Path) -> str:
    """What was evaluated: the checkpoint as it was typed, else the folder's name."""
    words = list(command)
    typed = words[2] if words[1:2] == ["eval"] and len(words) > 2 else ""
    if not typed or typed.startswith("-"):
        return out.resolve().name
    path = Path(typed)
    return short_name(str(path.resolve().parent if path.name == "model" else path))


def page_title(scored: Scored, name: str) -> str:
    """`smollm2-16k: evaluated up to 16k`."""
    return f"{name}: evaluated up to {format_length(scored.target_length)}"


def _lead(scored: Scored) -> str:
    tasks = ", ".join(scored.tasks)
    beside = "beside its base" if scored.has_base else "on its own, without its base"
    native = format_length(scored.native_length)
    return f"One checkpoint {beside}: {tasks}. Native window {native}, 95% intervals throughout."


def repeat_commands(command: Sequence[str], out: Path) -> list[str]:
    """What to type to evaluate again and to draw this page again."""
    again = [shlex.join(command)] if command else []
    return [*again, f"giraffe report {shlex.quote(str(out))}"]
