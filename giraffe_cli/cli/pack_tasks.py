"""`pack-data --executor`: its options checked, the packing handed over, what runs later shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import UsageError


def check_options(
    executor: str | None,
    tasks: int | None,
    settings: Sequence[str],
    *,
    shard: str | None,
    merge: bool,
    workers: int,
    report: bool,
) -> None:
    """Refuse options that contradict `--executor`, or do nothing without it.

    Raises:
        UsageError: the first of them.
    """
    if executor is None:
        for option, value in (("--tasks", tasks), ("--executor-set", settings or None)):
            if value is not None:
                raise UsageError(f"{option} has no effect without --executor", "leave it out")
        return
    others = {"--shard": shard is not None, "--merge": merge, "--workers": workers > 1}
    for option, given in others.items():
        if given:
            raise UsageError(
                f"{option} goes without --executor, which shards and merges by itself",
                "leave it out; --tasks N says how many shards there are",
            )
    if report and executor == "slurm":
        raise UsageError(
            "--report needs the rows, which Slurm writes later",
            "when its jobs are done, run the same command with --report and without --executor",
        )


def pack_by_tasks(
    job: tuple[Any, ...],
    executor: str,
    tasks: int | None,
    settings: Sequence[str],
    console: Console,
) -> dict[str, Any] | None:
    """The stats of `job`; None when it was submitted to run later, which is shown.

    Raises:
        InvalidInput, UsageError, GiraffeError: as `pack_with`.
    """
    from giraffe_cli.corpus.executor import PackJob, Submitted, make_executor, pack_with

    sources, tokenizer, window, config, seed, out, _ = job
    folder = str(Path.cwd())
    described = PackJob(sources, tokenizer.absolute(), window, config, seed, out.absolute(), folder)
    done = pack_with(make_executor(executor, settings), described, tasks, console)
    if not isinstance(done, Submitted):
        return done
    scripts = [str(path) for path in done.scripts]
    console.result(
        {"out": str(out), "jobs": done.jobs, "scripts": scripts},
        escape(f"submitted jobs {', '.join(done.jobs)}: {', '.join(scripts)}"),
    )
    return None
