"""`giraffe eval` at work: what was named opened, its documents gathered, all of it scored."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.evaluate_input import documents_for
from giraffe_cli.errors import UsageError

if TYPE_CHECKING:
    from giraffe_cli.config.evaluate import EvalConfig


def score_named(
    checkpoint: str,
    base: str | None,
    config: EvalConfig,
    seed: int,
    dtype: str,
    out: Path,
    console: Console,
    allow_pickle: bool,
) -> dict[str, Any]:
    """Open what was named, gather the documents, evaluate; the results.

    Empty in a process that a launcher started and that is not the first.

    Raises:
        GiraffeError: a checkpoint, a corpus or a file cannot be used.
    """
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.evals.opening import open_checkpoint, run_of
    from giraffe_cli.evals.parts import first_process_first
    from giraffe_cli.evals.runner import evaluate as score
    from giraffe_cli.evals.samples import default_lengths
    from giraffe_cli.evals.subject import EVALUATOR, Subject
    from giraffe_cli.evals.texts import evaluation_texts
    from giraffe_cli.model.precision import computed_in

    with first_process_first():  # a GGUF is converted once, an adapter merged once
        reference = inspect(base, out / "base", allow_pickle) if base else None
        tested = open_checkpoint(checkpoint, reference, out / "checkpoint", console, allow_pickle)
        named = config.evaluator
        chooser = inspect(named, out / EVALUATOR, allow_pickle) if named else None
    native = reference.reach if reference else tested.native_length
    chosen = config.lengths or default_lengths(native, tested.reach)
    computed = computed_in(dtype, tested.dtype, console)
    opened = [("base", reference), ("checkpoint", tested)]
    subjects = [Subject(name, c.path, c.digest, computed) for name, c in opened if c]
    if chooser:
        computed = computed_in(dtype, chooser.dtype)
        subjects.append(Subject(EVALUATOR, chooser.path, chooser.digest, computed))
    folders = [subject.path for subject in subjects]
    read = documents_for(config, run_of(checkpoint), folders, console)
    return score(
        subjects,
        config,
        lengths=chosen,
        native_length=native,
        seed=seed,
        texts=evaluation_texts(config, read, chooser),
        out=out,
        cache=Path(config.cache) if config.cache else out / "cache",
        reporter=console,
    )


def check_processes(processes: int | None) -> None:
    """Whether this machine and a launcher allow `--processes`.

    Raises:
        UsageError: one of a launcher's processes is told to start more, or there are fewer GPUs.
    """
    from giraffe_cli.evals.parts import launched_part
    from giraffe_cli.train.parallel import visible_gpus

    started, visible = launched_part().processes, visible_gpus()
    if processes and started > 1:
        raise UsageError(
            f"--processes {processes} in one of {started} processes of a launcher",
            "leave --processes out, or start the command by itself",
        )
    if processes and 0 < visible < processes:
        raise UsageError(
            f"--processes {processes}: {visible} GPUs are visible here",
            f"--processes {visible}, or leave it out to use one",
        )


def held_by_the_first_process(folder: Path) -> AbstractContextManager[None]:
    """The folder, kept from other commands; by one process of a launcher for all."""
    from giraffe_cli.evals.parts import launched_part
    from giraffe_cli.lock import held

    return nullcontext() if launched_part().process else held(folder)
