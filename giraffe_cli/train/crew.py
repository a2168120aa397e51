"""The first node's side of a run on several (`train/nodes.py`): it calls, and lets the others go.

with crew_of(run_dir, 2, "", reporter) as crew:
    places = crew.call(workers, 8, worker, {})    # waits until every node has joined
    ...                                           # the launcher, with these places
    crew.over()
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from giraffe_cli.errors import GiraffeError, UsageError
from giraffe_cli.progress import Reporter
from giraffe_cli.rundir import make_folder, read_json, write_json
from giraffe_cli.train import nodes as names
from giraffe_cli.train.nodes import ALIVE, CALL, ENDED, FOLDER


@dataclass
class Crew:
    """The first node's view of the others."""

    run_dir: Path
    nodes: int
    """This one among them."""
    rendezvous: str
    """`HOST[:PORT]` at which the others reach this node; its name and a free port if empty."""
    reporter: Reporter
    calls: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def folder(self) -> Path:
        """Where the nodes find each other."""
        return self.run_dir / FOLDER

    def call(
        self, workers: Path, processes: int, worker: str, environment: Mapping[str, str]
    ) -> list[str]:
        """Call the others to a training of `processes` on every node, whose request lies in
        `workers`; the launcher's options for this node.

        Raises:
            GiraffeError: a node is not there.
        """
        tokens = self._wait_for_all()
        host, port = _endpoint(self.rendezvous)
        self.calls += 1
        places = ["--nnodes", str(self.nodes), "--master-addr", host, "--master-port", str(port)]
        told = {
            "number": self.calls,
            "tokens": tokens,
            "workers": str(workers.relative_to(self.run_dir)),
            "processes": processes,
            "worker": worker,
            "environment": dict(environment),
            "places": places,
        }
        write_json(self.folder / CALL, told)
        return [*places, "--node-rank", "0"]

    def over(self) -> None:
        """The training that was called for last has ended here."""
        (self.folder / f"over-{self.calls}").touch()

    def dismiss(self, error: BaseException | None = None) -> None:
        """Let the others go: there is no further training."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        kind = type(error).__name__ if isinstance(error, GiraffeError) else ""
        told = None if error is None else {"kind": kind, "message": str(error)}
        write_json(self.folder / ENDED, {"tokens": list(self._tokens().values()), "error": told})

    def clear(self) -> None:
        """Remove what an earlier run left; the folder stays, into which others may write already,
        and sign in again when they see that they are gone."""
        for pattern in (CALL, ENDED, "joined-*.json", "over-*"):
            for path in make_folder(self.folder).glob(pattern):
                path.unlink(missing_ok=True)

    def live(self) -> None:
        """Give signs of life until dismissed."""
        number = 0
        while True:
            write_json(self.folder / ALIVE, number)
            number += 1
            if self.stopped.wait(names.BEAT):
                return

    def _tokens(self) -> dict[int, str]:
        """Of the nodes that have joined, by rank."""
        found = {rank: self.folder / f"joined-{rank}.json" for rank in range(1, self.nodes)}
        return {rank: read_json(path)["token"] for rank, path in found.items() if path.exists()}

    def _wait_for_all(self) -> list[str]:
        given_up = time.monotonic() + names.PATIENCE
        told = False
        while len(found := self._tokens()) < self.nodes - 1:
            missing = [rank for rank in range(1, self.nodes) if rank not in found]
            listed = ", ".join(map(str, missing))
            if not told:
                self.reporter.info(f"waiting for node {listed} of {self.nodes}")
                told = True
            if time.monotonic() > given_up:
                raise GiraffeError(
                    f"node {listed} of {self.nodes} did not join within {names.PATIENCE:.0f} s",
                    f"the same command with --node-rank {missing[0]} there; every node must see "
                    f"{self.run_dir}",
                )
            time.sleep(names.BEAT / 4)
        return list(found.values())


@contextlib.contextmanager
def crew_of(
    run_dir: Path, nodes: int, rendezvous: str, reporter: Reporter
) -> Iterator[Crew | None]:
    """The first node's crew, which lives in the block; None where one node trains."""
    if nodes == 1:
        yield None
        return
    crew = Crew(run_dir, nodes, rendezvous, reporter)
    crew.clear()
    beating = threading.Thread(target=crew.live, daemon=True)
    beating.start()
    try:
        yield crew
    except BaseException as error:
        crew.dismiss(error)
        raise
    finally:
        crew.dismiss()
        beating.join()


def _endpoint(rendezvous: str) -> tuple[str, int]:
    """Where the others reach this node.

    Raises:
        UsageError: the port is no number.
    """
    host, _, port = rendezvous.partition(":")
    if port and not port.isdigit():
        raise UsageError(f"--rendezvous {rendezvous}: `{port}` is no port", "HOST or HOST:29500")
    return host or socket.gethostname(), int(port) if port else _free_port()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])
