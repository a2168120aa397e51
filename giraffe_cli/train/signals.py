"""The signals that ask a training to stop, and how the request is held until a step ends.

SIGINT is Ctrl-C, SIGTERM is how Slurm pre-empts a job, SIGUSR1 what `sbatch --signal=USR1@120`
sends 120 seconds before the time limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopRequest:
    """Whether a signal, or the process that started this one, asked for an end."""

    file: Path | None = None
    """Its existence is a request too: how a parent tells its workers."""
    signalled: bool = False

    @property
    def requested(self) -> bool:
        """Whether a signal came, or a parent asks through the file."""
        return self.signalled or (self.file is not None and self.file.exists())


@contextlib.contextmanager
def stop_requests(
    file: Path | None = None, then: Callable[[], None] = lambda: None
) -> Iterator[StopRequest]:
    """Within the block, the first of `STOP_SIGNALS` is noted (and `then` called); a second one
    raises KeyboardInterrupt.

    With a `file` the signals are left to the process that writes it, which hears them too: a
    scheduler signals every process of a job. Outside the main thread they are left alone.
    """
    stop = StopRequest(file)

    def note(number: int, frame: object) -> None:
        if stop.signalled:
            raise KeyboardInterrupt
        stop.signalled = True
        then()

    if file is not None or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with _handled_by(note):
        yield stop


@contextlib.contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes started within the block ignore `STOP_SIGNALS`, as they inherit what is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handled_by(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, object], None] | signal.Handlers) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)
