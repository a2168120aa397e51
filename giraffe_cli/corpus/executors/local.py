"""Processes of this machine, by datatrove's LocalPipelineExecutor."""

from __future__ import annotations

from dataclasses import dataclass

from giraffe_cli.corpus.executor import (
    AbstractExecutor,
    PackJob,
    ShardTask,
    Submitted,
    needed,
    processors,
    quiet,
)


@dataclass(frozen=True)
class Local(AbstractExecutor):
    """Tasks as processes here."""

    workers: int = 0
    """Tasks at a time; 0 for one a processor."""

    summary = "processes of this machine"

    def run(self, job: PackJob, tasks: int | None, units: int) -> Submitted | None:
        needed("datatrove")
        from datatrove.executor import LocalPipelineExecutor

        tasks = tasks or min(units, processors())
        with quiet():
            LocalPipelineExecutor(
                [ShardTask(job)],
                tasks=tasks,
                workers=min(tasks, self.workers or processors()),
                logging_dir=str(job.work / "local"),
                # A finished unit is known by its digests; datatrove's mark would outlive a change.
                skip_completed=False,
            ).run()
        return None
