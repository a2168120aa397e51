"""Packing as many tasks: each tokenises one shard, wherever an executor runs it, then one merges.

    pack_with(make_executor("ray"), job, 8, console) → eight shards on a Ray cluster, rows here
    pack_with(make_executor("slurm", ["partition=cpu"]), job, 64, console) → two jobs, later

A task is `pack_shard`, so the bytes do not depend on the executor. Every task runs in the folder
the command ran in and leaves a record, `tasks/00003.json` in the work folder: datatrove reports
what failed only in logs.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.packing import merge_shards, pack_shard, pack_stage
from giraffe_cli.corpus.source_names import parse_source
from giraffe_cli.corpus.sources import resolve
from giraffe_cli.corpus.store import check_replaceable, is_packed
from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError, near_misses
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.registry import discover, pick
from giraffe_cli.rundir import WORK, make_folder, read_json, write_json

KINDS = {error.__name__: error for error in (InvalidInput, UsageError, GiraffeError)}


@dataclass(frozen=True)
class PackJob:
    """One packing, as it travels to other processes and machines that share its folders."""

    sources: list[str]
    tokenizer: Path
    """Absolute; holds `tokenizer.json`."""
    window: int
    config: PackConfig
    seed: int
    out: Path
    """Absolute."""
    folder: str
    """The working directory, which `sources` may be relative to."""

    @property
    def work(self) -> Path:
        """Where shards leave what they tokenised."""
        return self.out / WORK

    def arguments(self, reporter: Reporter) -> tuple[Any, ...]:
        """What `pack_stage`, `pack_shard` and `merge_shards` take."""
        return (
            self.sources,
            self.tokenizer,
            self.window,
            self.config,
            self.seed,
            self.out,
            reporter,
        )

    def record(self, rank: int) -> Path:
        """Where task `rank` says how it ended."""
        return self.work / "tasks" / f"{rank:05d}.json"


@dataclass(frozen=True)
class ShardTask:
    """A step of a datatrove pipeline: task `rank` of `world_size` tokenises shard rank + 1."""

    job: PackJob
    raises: bool = False
    """Whether a failed task fails for its scheduler too; else its record alone tells."""

    def __repr__(self) -> str:
        return f"giraffe pack-data, one shard into {self.job.out}"

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Tokenise the shard and record how it went.

        Raises:
            GiraffeError: under `raises`, what `pack_shard` raised.
        """
        reporter = SilentReporter()
        error = None
        try:
            with contextlib.chdir(self.job.folder):
                pack_shard(*self.job.arguments(reporter), shard=(rank + 1, world_size))
        except GiraffeError as caught:
            error = caught
        failed = [type(error).__name__, error.message, error.hint] if error else None
        make_folder(self.job.record(rank).parent)
        write_json(self.job.record(rank), {"failed": failed, "warnings": reporter.warnings})
        if error and self.raises:
            raise error


@dataclass(frozen=True)
class Submitted:
    """Jobs that a scheduler runs later."""

    jobs: list[str]
    """The scheduler's numbers of them."""
    scripts: list[Path]
    """What was handed in."""


@dataclass(frozen=True)
class AbstractExecutor(ABC):
    """One way to run tasks. Dataclass fields are its settings; the file name is its name."""

    summary: ClassVar[str]
    """Where the tasks run, for the help."""

    @abstractmethod
    def run(self, job: PackJob, tasks: int | None, units: int) -> Submitted | None:
        """Run `tasks` of `ShardTask(job)`, or as many as suit the `units` of work.

        Returns:
            None when every task has ended, well or not; what was submitted when they run later,
            and the merge after them.

        Raises:
            InvalidInput: a package or program is missing, or a setting cannot be met.
            GiraffeError: the scheduler refused.
        """


def executors() -> dict[str, type[AbstractExecutor]]:
    """Every registered executor by name."""
    return discover("giraffe_cli.corpus.executors", AbstractExecutor)


def make_executor(name: str, settings: Sequence[str] = ()) -> AbstractExecutor:
    """The executor `name` with `settings` such as `partition=cpu`.

    Raises:
        InvalidInput: no such executor, no such setting, or a value of another type.
    """
    kind = pick(name, executors(), "executor")
    known: dict[str, Any] = {entry.name: entry.default for entry in fields(kind)}
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key = key.strip().replace("-", "_")
        if not separator or key not in known:
            raise InvalidInput(
                f"--executor-set {setting}: {name} has no such setting", near_misses(key, known)
            )
        wanted = type(known[key])
        try:
            values[key] = wanted(text)
        except ValueError as error:
            raise InvalidInput(f"--executor-set {setting}: {wanted.__name__} expected") from error
    return kind(**values)


def pack_with(
    executor: AbstractExecutor, job: PackJob, tasks: int | None, reporter: Reporter
) -> dict[str, Any] | Submitted:
    """Pack `job` by `tasks` tasks of `executor`: its stats, or what runs later.

    Raises:
        InvalidInput, UsageError, GiraffeError: as `pack_stage`, of any task; finished units stay.
    """
    if is_packed(job.out):  # holds already, or is refused: no task is needed for either
        return pack_stage(*job.arguments(reporter), replace=False)
    if any(parse_source(source).path == "-" for source in job.sources):
        raise UsageError("standard input (`-`) reaches no task", "store it in a file, and name it")
    check_replaceable(job.out)
    units = len(resolve(job.sources, job.config))
    job = replace(job, tokenizer=_lasting(job.tokenizer, job.work))
    shutil.rmtree(job.record(0).parent, ignore_errors=True)
    submitted = executor.run(job, tasks, units)
    if submitted:
        return submitted
    check_records(job, reporter)
    return merge_shards(*job.arguments(reporter))


def check_records(job: PackJob, reporter: Reporter) -> None:
    """Pass on what the tasks warned of. A task that was killed left no record; the merge names
    the units that it lacks.

    Raises:
        InvalidInput, UsageError, GiraffeError: what the first task that failed raised.
    """
    records = [read_json(path) for path in sorted(job.record(0).parent.glob("*.json"))]
    for warning in dict.fromkeys(text for record in records for text in record["warnings"]):
        reporter.warn(warning)
    for record in records:
        if record["failed"]:
            kind, message, hint = record["failed"]
            raise KINDS.get(kind, GiraffeError)(message, hint)


def needed(*packages: str) -> None:
    """Check that the extra `[cluster]` is there.

    Raises:
        InvalidInput: one of `packages` is not installed.
    """
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise InvalidInput(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            "pip install 'giraffe-cli[cluster]'",
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep datatrove's talk in its log files while this process waits for tasks."""
    from loguru import logger

    logger.disable("datatrove")
    try:
        yield
    finally:
        logger.enable("datatrove")


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lasting(tokenizer: Path, work: Path) -> Path:
    """`tokenizer`, or a copy in `work` when it lies where other machines do not see it."""
    place = tokenizer.absolute()
    if not place.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        return place
    copy = make_folder(work / "tokenizer")
    for path in sorted(place.glob("*.json")):
        shutil.copyfile(path, copy / path.name)
    return copy.absolute()
