"""Several processes for one run: how many train, and how they are heard.

The parent runs torch's own launcher (`train/launcher.py`), replays what rank 0 reports, and turns
a worker's error into its own. A stop travels as a file (`workers/stop`) that every worker sees at
the end of its step, because the launcher would kill them after 30 seconds; launcher and workers
ignore the signals themselves: a scheduler sends them to every process of a job, and they would end
it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from giraffe_cli import errors
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import DoesNotFit, GiraffeError, Interrupted, UsageError
from giraffe_cli.model.out_of_memory import hand_back
from giraffe_cli.progress import Bar, Reporter
from giraffe_cli.rundir import begin_stage, read_json, write_json
from giraffe_cli.train.crew import Crew
from giraffe_cli.train.launcher import launcher_command, run_launcher
from giraffe_cli.train.signals import stop_requests
from giraffe_cli.units import counted

LOCAL = ("--standalone", "--local-addr", "127.0.0.1")
"""Processes of one machine meet at this address: by torch's default at the machine's own name,
which need not resolve, and then they wait for each other without a word."""
_EVENT = "giraffe-event "


def choose_processes(config: TrainConfig, visible_devices: int, reporter: Reporter) -> int:
    """How many processes train, on all nodes: as configured, else as many GPUs as divide a step's
    windows. `visible_devices` are the GPUs of all nodes.

    Raises:
        UsageError: the windows of a step cannot be shared equally, or there are fewer GPUs.
    """
    windows, share = config.windows_per_step, config.sequence_parallel
    if config.processes is not None:
        if config.processes % share:
            raise UsageError(
                f"{config.processes} processes cannot share windows by {share} each",
                f"--set train.processes={share}, or a multiple",
            )
        if windows % (config.processes // share):
            raise UsageError(
                f"{counted(windows, 'window')} per step cannot be shared by "
                f"{config.processes} processes",
                f"--set train.windows_per_step={config.processes // share}, or a multiple",
            )
        _check_devices(config, config.processes, visible_devices, reporter)
        return _on_nodes(config.processes, config.nodes)
    if 0 < visible_devices < share:
        raise UsageError(
            f"sequence_parallel {share} needs as many GPUs, {visible_devices} are visible",
            f"--set train.sequence_parallel={visible_devices}",
        )
    groups = max(1, visible_devices // share)
    chosen = share * max(n for n in range(1, groups + 1) if windows % n == 0)
    if chosen < groups * share:
        reporter.warn(
            f"training on {chosen} of {visible_devices} GPUs: a step has "
            f"{counted(windows, 'window')}; --set train.windows_per_step={groups} uses "
            f"{groups * share}"
        )
    elif chosen < visible_devices:
        reporter.warn(f"training on {chosen} of {visible_devices} GPUs: {share} share each window")
    return _on_nodes(chosen, config.nodes)


def _on_nodes(processes: int, nodes: int) -> int:
    """`processes`, where every node has as many of them.

    Raises:
        UsageError: they cannot be spread so.
    """
    if processes % nodes:
        raise UsageError(
            f"{processes} processes cannot be spread over {nodes} nodes",
            f"--set train.processes={nodes}, or a multiple; train.windows_per_step likewise",
        )
    return processes


def _check_devices(
    config: TrainConfig, processes: int, visible_devices: int, reporter: Reporter
) -> None:
    """Whether there is a GPU for each process; CPUs are shared as they are."""
    are_too_few = 0 < visible_devices < processes
    if config.share_devices and not are_too_few:
        reporter.warn(
            f"train.share_devices has no effect: {processes} processes, {visible_devices} GPUs"
        )
    if are_too_few and not config.share_devices:
        raise UsageError(
            f"{processes} processes were asked for, {visible_devices} GPUs are visible",
            f"pass --gpus {visible_devices}; --set train.share_devices=true puts several on each, "
            "to try them out",
        )


def launch(
    request: dict[str, Any],
    run_dir: Path,
    processes: int,
    reporter: Reporter,
    worker: str = "giraffe_cli.train.worker",
    job: str = "training",
    environment: Mapping[str, str] | None = None,
    crew: Crew | None = None,
) -> None:
    """Run the module `worker` in `processes` processes until they end; `job` names what they do.
    `environment` is what theirs has beside this one's. A `crew` takes its nodes' shares of them.

    Raises:
        GiraffeError: a worker failed; its own error where it told one. Or a node is not there.
        Interrupted: a signal came; the workers saved a checkpoint.
    """
    hand_back()  # a comparison of tables in this process leaves its GPU's cache full
    folder, variables = begin_stage(run_dir / "workers"), environment or {}
    write_json(folder / "request.json", request)
    here = processes // (crew.nodes if crew else 1)
    places = crew.call(folder, here, worker, variables) if crew else LOCAL
    command = launcher_command(places, here, worker, folder / "request.json")
    on_nodes = f" on {crew.nodes} nodes" if crew else ""
    reporter.info(f"starting {processes} processes{on_nodes}: {shlex.join(command)}")
    with stop_requests(then=(folder / "stop").touch) as stop:
        code = run_launcher(
            command,
            folder / "log.txt",
            here,
            variables,
            hear=lambda lines: replay(lines, reporter),
            is_over=(lambda: _told_elsewhere(folder, here)) if crew else None,
        )
    if crew:
        crew.over()
    raise_what_workers_told(folder, code, job)
    if stop.signalled:  # while they ended, and looked no more
        raise Interrupted(
            f"stopped after the {job}; what it wrote stands",
            "run the same command again to go on from it",
        )


def _told_elsewhere(folder: Path, here: int) -> bool:
    """Whether a worker beyond the first `here` has left an error."""
    return any(int(path.stem.split("-")[1]) >= here for path in folder.glob("error-*.json"))


def tell_error(folder: Path, rank: int, error: BaseException) -> None:
    """In a worker: leave `error` for the parent."""
    known = isinstance(error, GiraffeError)
    told = {
        "kind": type(error).__name__ if known else "",
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "hint": error.hint if isinstance(error, GiraffeError) else None,
    }
    write_json(folder / f"error-{rank}.json", told)


class EventReporter:
    """A `Reporter` that writes what it is told as lines for `replay`."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def info(self, text: str) -> None:
        self._write(event="info", text=text)

    def warn(self, text: str) -> None:
        self._write(event="warn", text=text)

    @contextlib.contextmanager
    def bar(self, description: str, total: float, unit: str, done: float = 0) -> Iterator[Bar]:
        self._write(event="bar", description=description, total=total, unit=unit, done=done)
        yield self
        self._write(event="end")

    def advance(self, amount: float = 1, **fields: str) -> None:
        self._write(event="advance", amount=amount, fields=fields)

    def _write(self, **event: Any) -> None:
        self.stream.write(_EVENT + json.dumps(event) + "\n")
        self.stream.flush()


def replay(lines: IO[str], reporter: Reporter) -> None:
    """Tell `reporter` what an `EventReporter` wrote; other lines are dropped."""
    with contextlib.ExitStack() as open_bars:
        bar: Bar | None = None
        for line in lines:
            if not line.startswith(_EVENT):
                continue
            event = json.loads(line.removeprefix(_EVENT))
            match event.pop("event"):
                case "info":
                    reporter.info(event["text"])
                case "warn":
                    reporter.warn(event["text"])
                case "bar":
                    bar = open_bars.enter_context(reporter.bar(**event))
                case "advance" if bar is not None:
                    bar.advance(event["amount"], **event["fields"])
                case "end":
                    open_bars.close()


def visible_gpus() -> int:
    """CUDA devices this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def raise_what_workers_told(folder: Path, code: int, job: str = "training") -> None:
    """Turn the workers' end into this process's own.

    Raises:
        DoesNotFit: a worker was killed without a word.
        GiraffeError: of the kind the first worker told; of the exit code when none told.
    """
    told = [read_json(path) for path in sorted(folder.glob("error-*.json"))]
    ended = ended_by_signal(folder) if code and not any(entry["kind"] for entry in told) else None
    if ended and ended[1] != signal.SIGKILL:
        raise GiraffeError(
            f"process {ended[0]} of the {job} was ended by {ended[1].name}; what was saved stands",
            f"what it wrote is in {folder}/log*.txt",
        )
    if ended:
        raise DoesNotFit(
            f"a process of the {job} was killed (signal 9), as Linux does when memory runs out; "
            "what was saved stands",
            "fewer processes, or (of a training) smaller settings: see `giraffe plan`",
        )
    # a worker that lost its peer tells of a broken connection: the peer's own error comes first
    told.sort(key=lambda entry: not entry["kind"])
    if not told and code == 0:
        return
    if not told:
        raise GiraffeError(
            f"the {job} ended with exit code {code}", f"what it wrote is in {folder / 'log.txt'}"
        )
    kind = getattr(errors, told[0]["kind"], GiraffeError)
    if kind is Interrupted:
        raise Interrupted(told[0]["message"], told[0]["hint"])
    raise kind(told[0]["message"], told[0]["hint"] or f"more in {folder / 'log.txt'}")


_FAILURE = re.compile(r"rank\s*: (\d+).*\n\s*exitcode\s*: -(\d+)\b")


def ended_by_signal(folder: Path) -> tuple[int, signal.Signals] | None:
    """(rank, signal) of a worker that a signal ended, as torch's launchers sum up their failures in
    `log.txt` and, on other nodes, `log-N.txt`. What failed first stands last, under a title; the
    others the launcher itself has killed."""
    for log in sorted(folder.glob("log*.txt")):
        text = log.read_text(encoding="utf-8", errors="replace")
        _others, _title, first = text.rpartition("Root Cause")
        if found := _FAILURE.search(first):
            return int(found[1]), signal.Signals(int(found[2]))
    return None
