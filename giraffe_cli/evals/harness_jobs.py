"""lm-eval's tasks run one by one and kept, so that a stopped evaluation goes on where it stopped:
finished ones as scores, the samples of an unfinished one in lm-eval's own store of responses.
The prompts of a task at a length are made once, for the first model that lacks it, and read by all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.data_files import local_files
from giraffe_cli.evals.harness_runs import Run
from giraffe_cli.evals.lm_eval_run import ChatTemplate, run_task
from giraffe_cli.evals.lm_eval_tasks import MADE, RULER, installed_version, load_task
from giraffe_cli.evals.open_subject import OpenSubject, open_subject
from giraffe_cli.evals.subject import Subject
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import digest_file, digest_value, read_json, write_sealed
from giraffe_cli.units import format_length

FORMAT = 1
"""Raised when the same task would give other scores from newer code."""


class Job(NamedTuple):
    """A task name at a length."""

    name: str
    """lm-eval's name of a task or group, or the path of its YAML file."""
    length: int
    """Tokens."""
    of_ruler: bool
    """It was asked for as one of `ruler` and may be left out."""

    def __str__(self) -> str:
        return f"`{self.name}` at {format_length(self.length)}"


class Bench:
    """The jobs of one length on one model after the other."""

    def __init__(
        self, *, limit: int, chat: ChatTemplate, seed: int, cache: Path, reporter: Reporter
    ) -> None:
        self.limit, self.chat, self.seed = limit, chat, seed
        self.cache, self.reporter = cache, reporter
        self.tasks: dict[Job, dict[str, Any]] = {}
        self.problems: dict[Job, InvalidInput] = {}
        """Why a job could not be run."""

    def run(self, subject: Subject, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, Run]]]:
        """Each job with its runs by task; the model is loaded only if one is not kept."""
        opened: OpenSubject | None = None
        for job in jobs:
            kept = self._kept(subject, job)
            if not kept.exists() and self._load(subject, job):
                opened = opened or open_subject(subject)
                self._run(subject, job, opened, kept)
            if kept.exists():
                yield job, {name: Run.of_json(run) for name, run in read_json(kept).items()}

    def _load(self, subject: Subject, job: Job) -> bool:
        """Whether the job's prompts are there, made now or for an earlier model."""
        if job in self.tasks or job in self.problems:
            return job not in self.problems
        made = f"making {MADE} prompts of" if job.name in RULER else "loading"
        self.reporter.info(f"lm-eval: {made} {job}")
        try:
            tokenizer = load_tokenizer(subject.path)
            self.tasks[job] = load_task(job.name, job.length, tokenizer, subject.path, self.seed)
        except InvalidInput as problem:
            self.problems[job] = problem
        return job in self.tasks

    def _run(self, subject: Subject, job: Job, opened: OpenSubject, kept: Path) -> None:
        self.reporter.info(f"lm-eval: {subject.name} reads {job}")
        runs = {}
        try:
            for name, task in self.tasks[job].items():
                runs[name] = run_task(
                    task,
                    opened,
                    self.cache / f"{_name(subject)}-{subject.text_digest[:16]}-responses",
                    length=job.length,
                    limit=self.limit,
                    chat=self.chat,
                    seed=self.seed,
                )
        except InvalidInput as problem:
            self.problems[job] = problem
            return
        write_sealed(kept, {name: run.to_json() for name, run in runs.items()})

    def _kept(self, subject: Subject, job: Job) -> Path:
        """The file of the finished job, named by all that decides its content."""
        path = Path(job.name)
        identity = {
            "format": FORMAT,
            "lm_eval": installed_version(),
            "task": [*map(digest_file, local_files(path))] if path.is_file() else job.name,
            "tokenizer": subject.text_digest,
            "length": job.length,
            "limit": self.limit,
            "chat": self.chat,
            "seed": self.seed,
        }
        return self.cache / f"{_name(subject)}-{digest_value(identity)[:16]}.json"


def _name(subject: Subject) -> str:
    return f"{subject.digest[:16]}-{subject.dtype}-lm-eval"
