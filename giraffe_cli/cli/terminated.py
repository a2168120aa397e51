"""SIGTERM ends a command as Ctrl-C does: what is half written is removed, and a line says so. So
does SIGUSR1, which a batch system sends before the time limit, wherever the run is by then.

A stage that notes signals itself (training) does so in its block and gives this back after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGUSR1)


class SignalledToEnd(BaseException):
    """One of `ENDING` came. No KeyboardInterrupt, which typer would take for Ctrl-C, without a
    word."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        """`SIGTERM`."""


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block one of `ENDING` raises `SignalledToEnd`; a second one ends the process.

    So does the first one a process that was forked within the block: to stop workers is what
    SIGTERM is for. Outside the main thread they are left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def raise_here(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != own:
            os.kill(os.getpid(), number)
        else:
            raise SignalledToEnd(number)

    before = {number: signal.signal(number, raise_here) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
