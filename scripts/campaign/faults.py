"""Kills, full disks and vanishing folders under pack, train, merge, eval and export.

    kill      SIGKILL at the n-th fsync, rename or removal, or with half of a write done
    timer     SIGKILL after a random time, from outside
    terminate SIGTERM after a random time
    full      the n-th write, fsync or rename fails with ENOSPC (or EIO); RLIMIT_FSIZE; a tiny tmpfs
    readonly  the folder belongs to somebody else
    vanish    the output, the model or the corpus is removed at the n-th point
    two       a second command on the folder while the first stands still

Afterwards nothing half-written counts as whole, and the same command, undisturbed, ends in the
bytes of a run that was never disturbed.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from scripts.campaign import material as parts
from scripts.campaign.cases import Case, Verdict, refusal
from scripts.campaign.commands import Command, Ended, run
from scripts.campaign.results import broken_stages, difference, result_of, unfinished

BASE = "base docs.jsonl"


class Job(NamedTuple):
    """A command, what it needs, what it writes."""

    words: list[str]
    needs: str
    result: str


JOBS = {
    "pack": Job(parts.PACK, BASE, "out"),
    "train": Job(parts.TRAIN, BASE, "out"),
    "merge": Job(parts.MERGE, f"{BASE} run", "run/model"),
    "eval": Job(parts.EVAL, f"{BASE} run", "out"),
    "export": Job(parts.GGUF, f"{BASE} run", "out.gguf"),
    "export-adapter": Job(parts.ADAPTER, f"{BASE} run", "out"),
}
KILLS = {"pack": 60, "train": 60, "merge": 45, "eval": 40, "export": 15, "export-adapter": 25}
TIMERS = {"pack": 12, "train": 14, "merge": 10, "eval": 10, "export": 6, "export-adapter": 4}
FULL = {"pack": 14, "train": 14, "merge": 10, "eval": 8, "export": 6, "export-adapter": 6}
NOBODY = 65534


def cases(material: Path, work: Path, share: float, seed: int) -> list[Case]:
    """Points are drawn evenly over those that an undisturbed run passes."""
    found = []
    for name in JOBS:
        attempt = partial(_attempt, material, work, name)

        def add(
            kind: str, counts: dict[str, int], name: str = name, attempt: Any = attempt
        ) -> None:
            for number in range(max(1, round(counts[name] * share))):
                key = f"faults/{kind}/{name}/{number}"
                found.append(
                    Case(key, partial(attempt, kind, number, counts[name], f"{seed}{key}"))
                )

        add("kill", KILLS)
        add("timer", TIMERS)
        add("terminate", dict.fromkeys(JOBS, 4))
        add("full", FULL)
        add("limited", dict.fromkeys(JOBS, 4))
        add("tmpfs", dict.fromkeys(JOBS, 2))
        add("readonly", dict.fromkeys(JOBS, 2))
        add("vanish", dict.fromkeys(JOBS, 5))
        add("two", dict.fromkeys(JOBS, 3))
    return found


# ── points at which a command is disturbed ───────────────────────────────────────────────────


class _Points:
    """Counts what a command does to the disk and calls `strike` at point number `at`."""

    def __init__(self, at: int, strike: Callable[[], None], log: Path | None = None) -> None:
        self.at, self.strike, self.log, self.count = at, strike, log, 0

    def pass_one(self, what: str) -> bool:
        """Count a point; whether it is the one to strike at."""
        self.count += 1
        if self.log is not None:
            with _OPEN(self.log, "ab") as handle:
                handle.write(f"{what}\n".encode())
        return self.count - 1 == self.at

    def install(self) -> None:
        """In the child alone, over what the standard library gives."""
        for module, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "rename"),
            (os, "unlink"),
            (shutil, "rmtree"),
        ):
            setattr(module, name, self._around(getattr(module, name), name))
        for module in (builtins, io):
            module.open = self._opening(module.open)

    def _around(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        def passing(*arguments: Any, **named: Any) -> Any:
            if self.pass_one(f"before {name}"):
                self.strike()
            result = work(*arguments, **named)
            if self.pass_one(f"after {name}"):
                self.strike()
            return result

        return passing

    def _opening(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            handle = work(file, mode, *arguments, **named)
            written = set(mode) & set("wax+") and isinstance(file, str | os.PathLike)
            return _Writer(handle, self) if written else handle

        return opening


class _Writer:
    """A file of which the n-th write stops in the middle."""

    def __init__(self, handle: Any, points: _Points) -> None:
        self._handle, self._points = handle, points

    def write(self, data: Any) -> Any:
        """All of it, or half and the strike."""
        if self._points.pass_one("write"):
            half = len(data) // 2
            self._handle.write(data[:half])
            self._handle.flush()
            self._points.strike()
            return half + self._handle.write(data[half:])
        return self._handle.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    def __enter__(self) -> _Writer:
        self._handle.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._handle.__exit__(*error)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._handle)


_OPEN = builtins.open


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


# ── one case ─────────────────────────────────────────────────────────────────────────────────


def _prepare(material: Path, folder: Path, name: str) -> None:
    parts.lay_out(material, folder, *JOBS[name].needs.split())
    if name == "merge":
        shutil.rmtree(folder / "run/model")


@cache
def reference(material: Path, work: Path, name: str) -> tuple[dict[str, str], list[str], float]:
    """Result, points and seconds of the undisturbed command.

    Raises:
        RuntimeError: it fails by itself.
    """
    folder = work / "undisturbed" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _prepare(material, folder, name)
    log = work / "points"
    log.unlink(missing_ok=True)
    ended = run(JOBS[name].words, folder, disturb=_Points(-1, _kill, log).install)
    if ended.code:
        raise RuntimeError(f"{JOBS[name].words}: {ended.stderr}")
    found = result_of(folder, *JOBS[name].result.split())
    return found, log.read_text().splitlines(), ended.seconds


def _attempt(
    material: Path, work: Path, name: str, kind: str, number: int, of: int, seed: str, folder: Path
) -> Verdict:
    _prepare(material, folder, name)
    expected, points, seconds = reference(material, work, name)
    draw = random.Random(seed)
    at = _point(points, number, of, draw)
    special = {"two": _two, "readonly": _readonly, "tmpfs": _tmpfs}.get(kind)
    if special:
        return special(material, work, name, number, len(points) * (number + 1) // 4, folder)
    ended, facts = _disturbed(name, kind, number, at, seconds, draw, folder)
    facts[f"at_{points[at].split()[-1]}" if kind == "kill" else kind] = True
    return _afterwards(name, ended, expected, facts, folder, kind)


def _point(points: list[str], number: int, of: int, draw: random.Random) -> int:
    """Evenly over the run: every other time inside a write, else at an fsync, rename or removal."""
    writes = [n for n, what in enumerate(points) if (what == "write") == bool(number % 2)]
    return writes[min(len(writes) - 1, int((number + draw.random()) * len(writes) / of))]


def _disturbed(
    name: str, kind: str, number: int, at: int, seconds: float, draw: random.Random, folder: Path
) -> tuple[Ended, dict[str, Any]]:
    words = JOBS[name].words
    facts: dict[str, Any] = {}
    if kind in ("timer", "terminate"):
        started = Command(words, folder)
        time.sleep(draw.uniform(0.02, 0.95) * seconds)
        started.signal(signal.SIGKILL if kind == "timer" else signal.SIGTERM)
        ended = started.wait()
        facts["ended_before_the_signal"] = ended.code == 0
    elif kind == "limited":
        size = int(1024 * 10 ** draw.uniform(0, 2.5))
        ended = run(words, folder, file_size=size)
    else:
        strikes: dict[str, Callable[[], None]] = {
            "kill": _kill,
            "full": partial(_fail, errno.ENOSPC if number % 3 else errno.EIO),
            "vanish": partial(_vanish, folder, name, number),
        }
        ended = run(words, folder, disturb=_Points(at, strikes[kind]).install)
    facts["killed"] = ended.code == -signal.SIGKILL and not ended.hung
    return ended, facts


def _vanish(folder: Path, name: str, number: int) -> None:
    victims = ["out", "base", "docs.jsonl"] if name in ("pack", "train") else ["out", "run", "base"]
    victim = folder / victims[number % 3]
    with contextlib.suppress(OSError):
        subprocess.run(["rm", "-rf", str(victim)], check=False)


def _afterwards(
    name: str,
    ended: Ended,
    expected: dict[str, str],
    facts: dict[str, Any],
    folder: Path,
    kind: str,
) -> Verdict:
    """The rules of every disturbance, then the same command once more."""
    died = ended.code in (-signal.SIGKILL, -signal.SIGTERM)
    if facts.get("killed"):
        facts["inside_a_write"] = bool(unfinished(folder))
    if ended.code and not died and (problem := refusal(ended)):
        return Verdict("wrong", problem, facts)
    if problem := broken_stages(folder):
        return Verdict("wrong", f"counts as whole: {problem}", facts)
    result = JOBS[name].result
    if name == "export" and (folder / result).exists():
        told = difference(expected, result_of(folder, result))
        if told:
            return Verdict("wrong", f"counts as whole: {told}", facts)
    if ended.code == 0:
        told = difference(expected, result_of(folder, *result.split()))
        if not told:
            return Verdict("same", "", facts)
        if kind != "vanish":
            return Verdict("wrong", f"silent: {told}", facts)
    if kind == "vanish":
        gone = [n for n in JOBS[name].needs.split() if not (folder / n).exists()]
        if gone:  # what is gone cannot be gone on with; the refusal was clear
            return Verdict("refused", f"{gone} vanished", facts)
    return _again(name, expected, facts, folder)


def _again(name: str, expected: dict[str, str], facts: dict[str, Any], folder: Path) -> Verdict:
    again = run(JOBS[name].words, folder)
    if again.code:
        return Verdict("wrong", f"cannot go on: {again.stderr.strip()[-400:]}", facts)
    told = difference(expected, result_of(folder, *JOBS[name].result.split()))
    left = [path for path in unfinished(folder) if not path.startswith("run/")]
    if told or left:
        return Verdict("wrong", f"resumed: {told} {left}", facts)
    return Verdict("resumed", "", facts)


# ── folders that cannot be written, and two at once ──────────────────────────────────────────


def _readonly(material: Path, work: Path, name: str, number: int, at: int, folder: Path) -> Verdict:
    """As a user who may read everything and write nothing (0), or not even into `out` (1)."""
    if number:
        (folder / "out").mkdir(exist_ok=True)
        (folder / "out").chmod(0o755)
    for path in (folder.parent, folder):
        path.chmod(0o755)
    outputs = [folder / ".stdout", folder / ".stderr"]
    for path in outputs:
        path.touch()
        path.chmod(0o666)
    ended = run(JOBS[name].words, folder, user=NOBODY, settings={"HOME": "/nonexistent"})
    facts = {"readonly": True}
    if ended.code == 0:
        return Verdict("wrong", "wrote where it may not", facts)
    if problem := refusal(ended):
        return Verdict("wrong", problem, facts)
    if number:
        shutil.rmtree(folder / "out")
    return _again(name, reference(material, work, name)[0], facts, folder)


def _tmpfs(material: Path, work: Path, name: str, number: int, at: int, folder: Path) -> Verdict:
    """The whole case on a file system of a size at which the command runs out of it."""
    shutil.rmtree(folder)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        return Verdict("limit", "no right to mount here", {"not_mounted": True})
    facts = {"tmpfs": True}
    try:
        _prepare(material, folder, name)
        used = shutil.disk_usage(folder).used // 1024
        size = f"remount,size={used + (120, 40)[number % 2]}k"
        subprocess.run(["mount", "-o", size, str(folder)], check=True)
        ended = run(JOBS[name].words, folder)
        expected = reference(material, work, name)[0]
        if ended.code == 0:
            told = difference(expected, result_of(folder, *JOBS[name].result.split()))
            return Verdict("wrong" if told else "same", told, facts)
        if problem := refusal(ended) or broken_stages(folder):
            return Verdict("wrong", problem, facts)
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        return _again(name, expected, facts, folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _two(material: Path, work: Path, name: str, number: int, at: int, folder: Path) -> Verdict:
    """A second command while the first stands still at a point; then the first goes on."""
    waiting, go_on = folder / ".waiting", folder / ".go-on"
    facts = {"two": True}

    def stand_still() -> None:
        _OPEN(waiting, "w").close()
        while not go_on.exists():
            time.sleep(0.01)

    first = Command(JOBS[name].words, folder, _Points(at, stand_still).install)
    first_output = first.output
    deadline = time.monotonic() + 120
    while not waiting.exists() and time.monotonic() < deadline:
        if os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.01)
    first.output = [path.with_name(f".first{path.name}") for path in first_output]
    for old, new in zip(first_output, first.output, strict=True):
        old.rename(new)
    second = run(JOBS[name].words, folder)
    go_on.touch()
    ended = first.wait()
    for path in (waiting, go_on):
        path.unlink(missing_ok=True)
    if ended.code:
        return Verdict("wrong", f"the first was disturbed: {ended.stderr[-300:]}", facts)
    told = difference(
        reference(material, work, name)[0], result_of(folder, *JOBS[name].result.split())
    )
    if told:
        return Verdict("wrong", f"the first ends otherwise: {told}", facts)
    if second.code == 0:
        return Verdict("same", "the first was not writing yet, or not any more", facts)
    named = f"process {first.pid} on {socket.gethostname()}" in second.stderr
    facts["refused_with_pid_and_host"] = named
    problem = refusal(second) or ("" if named else f"names no holder: {second.stderr[-300:]}")
    return Verdict("wrong" if problem else "refused", problem, facts)
