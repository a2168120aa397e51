"""Which of the named tasks run, and whether all that was given has an effect on them.

A suite names tasks that need a data file (`lambada`, `hellaswag`); without the file they are left
out and that is said. A task named by the user without its file is an error, and so is a file, a
corpus or a knob that no evaluated task reads.
"""

from __future__ import annotations

from collections.abc import Sequence

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput, near_misses, raise_together
from giraffe_cli.evals.base import Example, tasks
from giraffe_cli.registry import pick

TEXTS = frozenset(["documents", "haystack", "other_text"])
"""Needs that are no file."""


def needs_of(names: Sequence[str]) -> set[str]:
    """What of the material the tasks `names` need; unknown names need nothing."""
    known = tasks()
    return {need for name in names if name in known for need in known[name].needs}


def runnable(config: EvalConfig) -> tuple[list[str], list[str]]:
    """Names of the tasks that have what they need, each once however often it was named, and a
    sentence for each that is left out.

    Raises:
        InvalidInput: an unknown task, one that the user named and that has no file, or a setting
            that has no effect.
    """
    for name in config.tasks:
        pick(name, tasks(), "evaluation task")
    missing = {name: _missing_file(name, config) for name in config.tasks}
    if not config.tasks_are_the_suites:
        raise_together(
            [
                f"task `{name}` needs the data file `{file}`"
                for name, file in missing.items()
                if file
            ],
            "evaluation tasks",
            " ".join(f"--file {file}=PATH" for file in missing.values() if file),
        )
    _check_effects(config)
    left_out = [
        f"left out: task `{name}` needs a data file, --file {file}=PATH"
        for name, file in missing.items()
        if file
    ]
    return [name for name in missing if not missing[name]], left_out


def check_asked(config: EvalConfig, examples: Sequence[Example]) -> None:
    """An evaluator has something to choose, a chat template something to ask.

    Raises:
        InvalidInput: it has not.
    """
    problems = []
    if config.evaluator and not any(example.for_reference for example in examples):
        problems.append(
            "an evaluator has no effect: no evaluated task reads with a reference model"
        )
    asked = config.harness or any(example.max_new_tokens for example in examples)
    if config.chat and not asked:
        problems.append("a chat template has no effect: no evaluated task asks a question")
    raise_together(problems, "evaluation", "leave it out, or add a task to --tasks")


def _missing_file(name: str, config: EvalConfig) -> str:
    """The first file that the task needs and was not given; `""` when there is none."""
    absent = sorted(needs_of([name]) - TEXTS - {*config.files})
    return absent[0] if absent else ""


def _check_effects(config: EvalConfig) -> None:
    needed, known = needs_of(config.tasks), needs_of([*tasks()]) - TEXTS
    unused = sorted(set(config.knobs) - set(config.tasks))
    if unused:
        raise InvalidInput(
            f"knobs of tasks that are not evaluated: {', '.join(unused)}",
            f"--tasks {','.join([*config.tasks, *unused])}",
        )
    for name in config.files:
        if name not in known:
            raise InvalidInput(f"no task reads a data file `{name}`", near_misses(name, known))
        if name not in needed:
            raise InvalidInput(
                f"data file `{name}`: no evaluated task reads it",
                f"--tasks {','.join([*config.tasks, name])}, or --suite standard",
            )
    for option, given, need in (
        ("--data", config.data, {"documents", "haystack"}),
        ("--haystack", config.haystack, {"haystack"}),
        ("--other-data", config.other_data, {"other_text"}),
    ):
        if given and not need & needed:
            readers = [name for name in tasks() if need & needs_of([name])]
            raise InvalidInput(
                f"{option} has no effect: no evaluated task reads it",
                f"add one of {', '.join(readers)} to --tasks",
            )
