"""How the stages speak without printing: a `Reporter` is handed down, the console implements it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Bar(Protocol):
    """A running measure of work."""

    def advance(self, amount: float = 1, **fields: str) -> None:
        """Add `amount` done; `fields` (loss, tokens/s) are shown behind the bar."""


class Reporter(Protocol):
    """Where a stage says what it does; everything goes to stderr."""

    def info(self, text: str) -> None:
        """One line worth knowing."""

    def warn(self, text: str) -> None:
        """One line the user should act on or accept."""

    def bar(
        self, description: str, total: float, unit: str, done: float = 0
    ) -> contextlib.AbstractContextManager[Bar]:
        """A progress bar over `total` units, `done` of them finished before it starts."""


class _SilentBar:
    def advance(self, amount: float = 1, **fields: str) -> None:
        """Nothing to show."""


class SilentReporter:
    """Keeps warnings and lines instead of showing them: for tests and worker processes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextlib.contextmanager
    def bar(self, description: str, total: float, unit: str, done: float = 0) -> Iterator[Bar]:
        yield _SilentBar()
