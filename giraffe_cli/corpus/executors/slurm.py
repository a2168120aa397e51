"""A Slurm cluster, by datatrove's SlurmPipelineExecutor: an array of tasks, then the merge.

packed/.work/slurm/tasks.slurm   job array; runs executor.pik
packed/.work/slurm/merge.slurm   afterok of the array; runs merge.pik
packed.merge-%j.out              what the merge said, beside the folder: .work goes at its end
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.executor import (
    AbstractExecutor,
    PackJob,
    ShardTask,
    Submitted,
    check_records,
    needed,
)
from giraffe_cli.corpus.packing import merge_shards
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import make_folder

TASKS = 16
"""Default; more than most corpora have units for, few enough for any queue."""
LONGEST_ARRAY = 1000
"""Slurm's MaxArraySize is 1001 where nobody raised it."""


@dataclass(frozen=True)
class MergeTask:
    """The second job. datatrove's launcher calls `run` of whatever it unpickles."""

    job: PackJob

    def run(self) -> None:
        """Write the rows.

        Raises:
            InvalidInput, GiraffeError: as `merge_shards`.
        """
        reporter = SilentReporter()
        with contextlib.chdir(self.job.folder):
            check_records(self.job, reporter)
            merge_shards(*self.job.arguments(reporter))
        for warning in reporter.warnings:
            logging.getLogger(__name__).warning(warning)


@dataclass(frozen=True)
class Slurm(AbstractExecutor):
    """Tasks as a Slurm job array; its machines share the folders and this Python."""

    time: str = "04:00:00"
    partition: str = ""
    """Empty for the cluster's default; so with `qos` and `account`."""
    qos: str = ""
    account: str = ""
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    workers: int = -1
    """Tasks at a time; -1 for no limit."""
    env_command: str = ""
    """A line of shell before the task, such as `module load python`."""
    python: str = sys.executable

    summary = "a Slurm job array, and the merge after it"

    def run(self, job: PackJob, tasks: int | None, units: int) -> Submitted | None:
        needed("datatrove")
        scripts = self.write(job, tasks or min(units, TASKS))
        if shutil.which("sbatch") is None:
            first, second = scripts
            raise InvalidInput(
                f"sbatch is not on this machine's PATH; wrote {first} and {second}",
                "where Slurm is, run: "
                f"job=$(sbatch --parsable {shlex.quote(str(first))}) && "
                f"sbatch --dependency=afterok:$job {shlex.quote(str(second))}",
            )
        array = _submit(scripts[0])
        after = f"--dependency=afterok:{array}"
        try:
            return Submitted([array, _submit(scripts[1], after)], scripts)
        except GiraffeError as error:
            raise GiraffeError(
                f"{error.message}; the array of tasks is job {array}",
                f"sbatch {after} {shlex.quote(str(scripts[1]))}, or scancel {array}",
            ) from error

    def write(self, job: PackJob, tasks: int) -> list[Path]:
        """Write the two scripts and what they run into the work folder; their paths."""
        import dill

        folder = make_folder(job.work / "slurm")
        in_one = math.ceil(tasks / LONGEST_ARRAY)
        array = self._array(job, tasks, in_one, folder)
        (folder / "ranks_to_run.json").write_text(json.dumps(list(range(tasks))))
        for name, value in (("executor.pik", array), ("merge.pik", MergeTask(job))):
            (folder / name).write_bytes(dill.dumps(value))
        arguments = array.get_sbatch_args(math.ceil(tasks / in_one)) | {"account": self.account}
        log = str(job.out.parent / f"{job.out.name}.merge-%j.out")
        merge = {name: value for name, value in arguments.items() if name != "array"}
        merge |= {"job-name": "giraffe-merge", "output": log, "error": log}
        merge |= {"kill-on-invalid-dep": "yes"}
        return [
            _script(
                array, arguments, self._launch(folder / "executor.pik"), folder / "tasks.slurm"
            ),
            _script(array, merge, self._launch(folder / "merge.pik"), folder / "merge.slurm"),
        ]

    def _array(self, job: PackJob, tasks: int, in_one: int, folder: Path) -> Any:
        """datatrove's executor: `in_one` of the `tasks` in each job of the array."""
        from datatrove.executor import SlurmPipelineExecutor

        return SlurmPipelineExecutor(
            [ShardTask(job, raises=True)],
            tasks=tasks,
            tasks_per_job=in_one,
            time=self.time,
            partition=self.partition,
            qos=self.qos,
            cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb,
            workers=self.workers,
            job_name="giraffe-pack",
            env_command=self.env_command,
            logging_dir=str(folder),
            skip_completed=False,
        )

    def _launch(self, pickled: Path) -> str:
        module = "datatrove.tools.launch_pickled_pipeline"
        return shlex.join([self.python, "-m", module, str(pickled)])


def _script(executor: Any, arguments: dict[str, Any], command: str, path: Path) -> Path:
    """Write the batch script that runs `command`; options without a value are left to Slurm."""
    given = {name: v for name, v in arguments.items() if v != "" or name == "requeue"}
    path.write_text(executor.get_launch_file_contents(given, command), encoding="utf-8")
    return path


def _submit(script: Path, *options: str) -> str:
    """The number of the job.

    Raises:
        GiraffeError: sbatch refused.
    """
    done = subprocess.run(
        ["sbatch", "--parsable", *options, str(script)], capture_output=True, text=True
    )
    if done.returncode:
        raise GiraffeError(f"sbatch refused {script}: {done.stderr.strip()}", "see --executor-set")
    return done.stdout.strip().partition(";")[0]
