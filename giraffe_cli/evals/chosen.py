"""Which of the named tasks run, and whether all that was given has an effect on them.

A suite names tasks that need a data file (`lambada`, `hellaswag`); without the file they are left
out and that is said. A task named by the user without its file is an error, and so is a file, a
corpus or a knob that no evaluated task reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.errors import InvalidInput, Problems, near_misses, raise_together
from giraffe_cli.evals.base import Example, make_task, tasks
from giraffe_cli.registry import pick

TEXTS = frozenset(["documents", "haystack", "other_text"])
"""Needs that are no file."""
COUNTS = frozenset(["samples", "trials", "depths", "anchors"])
"""Knobs that only say how many samples there are."""


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
    problems = Problems()
    for name in config.tasks:
        problems.note(pick, name, tasks(), "evaluation task")
    problems.settle()
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


def check_tasks(config: EvalConfig) -> None:
    """The evaluation has tasks to run, and their knobs are ones they know.

    Raises:
        InvalidInput: as `runnable` and `make_task`; the knobs of all tasks at once.
    """
    problems = Problems()
    for name in runnable(config)[0]:
        problems.note(make_task, name, config.knobs.get(name, {}))
    problems.settle()


def sparing(config: EvalConfig) -> EvalConfig:
    """`config` with one sample of each kind, enough to know what is scored at which length; all
    rows of data files, of which any may be unfit."""
    once = {
        name: {field.name: 1 for field in fields(kind) if field.name in COUNTS}
        for name, kind in tasks().items()
        if name in config.tasks and not set(kind.needs) - TEXTS
    }
    knobs = {**config.knobs}
    for name, counts in once.items():
        knobs[name] = {**knobs.get(name, {}), **counts}
    return config.model_copy(update={"knobs": knobs})


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
            f"evaluate them too (--tasks {','.join([*config.tasks, *unused])}; extend: --set "
            "eval.tasks=[…]), or leave their knobs out (extend: --set 'eval.knobs={}')",
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
