"""How fast a packing reads, on its progress bar: megabytes and tokens a second."""

from __future__ import annotations

import time

from giraffe_cli.progress import Bar


class Pace:
    """Megabytes on a bar, with what a second brings; one for all units of a packing."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._started = bar, time.monotonic()
        self._megabytes = self._tokens = 0.0

    def advance(self, megabytes: float, tokens: int) -> None:
        """So much more was read, and gave so many tokens."""
        self._megabytes += megabytes
        self._tokens += tokens
        seconds = max(time.monotonic() - self._started, 1e-3)
        self._bar.advance(
            megabytes,
            **{
                "MB/s": f"{self._megabytes / seconds:.1f}",
                "tokens/s": f"{self._tokens / seconds:,.0f}",
            },
        )


class UnitProgress:
    """Bytes of a unit; what its size does not tell (gzip) is added at the end."""

    def __init__(self, pace: Pace | None, size: int) -> None:
        self._pace, self._left = pace, size

    def advance(self, size: int, tokens: int) -> None:
        """So many more bytes of it were read, and gave so many tokens."""
        shown = min(size, self._left)
        self._left -= shown
        if self._pace is not None:
            self._pace.advance(shown / 1e6, tokens)

    def end(self) -> None:
        """All of it was read."""
        if self._pace is not None and self._left:
            self._pace.advance(self._left / 1e6, 0)
