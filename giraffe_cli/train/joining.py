"""The other nodes' side of a run on several (`train/nodes.py`): they wait for calls, and train."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import make_folder, write_json
from giraffe_cli.train import nodes as names
from giraffe_cli.train.launcher import launcher_command, run_launcher
from giraffe_cli.train.nodes import ALIVE, CALL, ENDED, FOLDER, read_told
from giraffe_cli.train.signals import stop_requests


def join(run_dir: Path, rank: int, reporter: Reporter) -> None:
    """Train with the first node of the run in `run_dir` until it says that it was the last time.

    Raises:
        Interrupted: a signal came, here or there; what was trained is saved by the first node.
        GiraffeError: the first node is not there, or failed.
    """
    member = _Member(run_dir, rank, reporter)
    reporter.info(f"node {rank}: waiting for the first node to train in {run_dir}")
    with stop_requests(then=member.stop) as stop:
        while not member.is_dismissed():
            member.look()
            if stop.requested:
                raise Interrupted(f"node {rank} stopped", "run the same commands again to resume")
            time.sleep(names.BEAT / 4)


class _Member:
    """One of the other nodes."""

    def __init__(self, run_dir: Path, rank: int, reporter: Reporter) -> None:
        self.run_dir, self.rank, self.reporter = run_dir, rank, reporter
        self.folder, self.token, self.done = run_dir / FOLDER, uuid.uuid4().hex, 0
        self.last_sign: tuple[Any, float] = (None, time.monotonic())
        self.workers: Path | None = None

    def look(self) -> None:
        """Sign in where this node is not seen yet, and take part in a training it is called to."""
        if not self._first_node_lives():
            raise GiraffeError(
                f"no sign of the first node in {self.folder} for {names.PATIENCE:.0f} s",
                "start the same command there with --node-rank 0; every node must see that folder",
            )
        signed = self.folder / f"joined-{self.rank}.json"
        if read_told(signed, {}).get("token") != self.token:
            make_folder(self.folder)
            write_json(signed, {"token": self.token, "host": socket.gethostname()})
        call = read_told(self.folder / CALL, {})
        if self.token in call.get("tokens", []) and call["number"] > self.done:
            self.done = call["number"]
            self._take_part(call)

    def is_dismissed(self) -> bool:
        """Whether the first node is done with this one.

        Raises:
            GiraffeError: because it failed.
        """
        told = read_told(self.folder / ENDED, {})
        if self.token not in told.get("tokens", []):
            return False
        error = told["error"]
        if error and error["kind"] == Interrupted.__name__:
            raise Interrupted(f"the first node: {error['message']}", None)
        if error:
            raise GiraffeError(f"the first node failed: {error['message']}", "see what it says")
        return True

    def stop(self) -> None:
        """Ask the training that runs to save and end, in all nodes."""
        if self.workers is not None:
            (self.workers / "stop").touch()

    def _take_part(self, call: dict[str, Any]) -> None:
        self.workers = self.run_dir / call["workers"]
        _wait_for_file(self.workers / "request.json")
        self.reporter.info(f"node {self.rank}: {call['processes']} processes")
        run_launcher(
            launcher_command(
                [*call["places"], "--node-rank", str(self.rank)],
                call["processes"],
                call["worker"],
                self.workers / "request.json",
            ),
            self.workers / f"log-{self.rank}.txt",
            call["processes"],
            call["environment"],
            is_over=self._is_over(call["number"]),
        )
        self.workers = None

    def _is_over(self, number: int) -> Callable[[], bool]:
        """Whether training `number` has ended on the first node, or that node has."""
        over = self.folder / f"over-{number}"
        return lambda: over.exists() or not self._first_node_lives()

    def _first_node_lives(self) -> bool:
        """By this node's own clock: the sign has changed within `names.PATIENCE`."""
        seen, since = self.last_sign
        sign = read_told(self.folder / ALIVE, None)
        if sign != seen:
            self.last_sign = (sign, time.monotonic())
            return True
        return time.monotonic() - since < names.PATIENCE


def _wait_for_file(path: Path) -> None:
    given_up = time.monotonic() + names.PATIENCE
    while not path.exists():
        if time.monotonic() > given_up:
            raise GiraffeError(
                f"{path} is not seen here within {names.PATIENCE:.0f} s, the first node wrote it",
                "every node must see the run folder",
            )
        time.sleep(names.BEAT / 4)
