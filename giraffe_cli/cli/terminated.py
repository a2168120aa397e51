"""SIGTERM ends a command as Ctrl-C does: what is half written is removed, and a line says so.

A stage that notes signals itself (training) does so in its block and gives this back after it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class SignalledToEnd(BaseException):
    """SIGTERM came. No KeyboardInterrupt, which typer would take for Ctrl-C, without a word."""


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block SIGTERM raises `SignalledToEnd`; a second one ends the process at once.

    So does the first one a process that was forked within the block: to stop workers is what
    SIGTERM is for. Outside the main thread it is left alone.
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
            raise SignalledToEnd

    before = signal.signal(signal.SIGTERM, raise_here)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
