"""A Ray cluster, by datatrove's RayPipelineExecutor. All its machines share the folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from giraffe_cli.corpus.executor import (
    AbstractExecutor,
    PackJob,
    ShardTask,
    Submitted,
    needed,
    quiet,
)
from giraffe_cli.errors import InvalidInput


@dataclass(frozen=True)
class Ray(AbstractExecutor):
    """Tasks on a Ray cluster: the one at `address`, of `RAY_ADDRESS`, or one started here."""

    address: str = ""
    """`auto`, `host:6379`, `ray://host:10001`; empty as above."""
    workers: int = -1
    """Tasks at a time; -1 for as many as the cluster holds."""
    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 1.0

    summary = "a Ray cluster"

    def run(self, job: PackJob, tasks: int | None, units: int) -> Submitted | None:
        needed("datatrove", "ray")
        from datatrove.executor import RayPipelineExecutor

        with quiet(), self._cluster() as nodes:
            self._check(nodes)
            slots = sum(int(node.get("CPU", 0)) // self.cpus_per_task for node in nodes)
            RayPipelineExecutor(
                [ShardTask(job)],
                tasks=tasks or min(units, slots),
                workers=self.workers,
                cpus_per_task=self.cpus_per_task,
                mem_per_cpu_gb=self.mem_per_cpu_gb,
                logging_dir=str(job.work / "ray"),
                skip_completed=False,
            ).run()
        return None

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[list[dict[str, float]]]:
        """Resources of each node of a cluster this process is connected to.

        Raises:
            InvalidInput: nobody answers at `address`.
        """
        import ray

        connected = ray.is_initialized()
        if not connected:
            try:
                ray.init(address=self.address or None, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError) as error:
                raise InvalidInput(
                    f"no Ray cluster at {self.address or 'RAY_ADDRESS'}: {error}",
                    "start one with `ray start --head`, or leave out --executor-set address",
                ) from error
        try:
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
        finally:
            if not connected:
                ray.shutdown()

    def _check(self, nodes: list[dict[str, Any]]) -> None:
        """Refuse what Ray would wait for without an end.

        Raises:
            InvalidInput: no node holds a task.
        """
        memory = self.mem_per_cpu_gb * self.cpus_per_task * 2**30
        if not any(
            node.get("CPU", 0) >= self.cpus_per_task and node.get("memory", 0) >= memory
            for node in nodes
        ):
            raise InvalidInput(
                f"no node of the Ray cluster holds {self.cpus_per_task} processors and "
                f"{memory / 2**30:g} GB",
                "lower --executor-set cpus_per_task or mem_per_cpu_gb",
            )
