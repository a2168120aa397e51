"""The only printer. stdout is data (one JSON object, or the result table), stderr is talk."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from giraffe_cli.errors import GiraffeError
from giraffe_cli.progress import Bar
from giraffe_cli.units import visible


class _Terminal(RichConsole):
    """Writes text and styles of our own; what a document, a name or a model brings along reaches no
    terminal as a command to it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def advance(self, amount: float = 1, **fields: str) -> None:
        shown = " ".join(f"{name} {value}" for name, value in fields.items())
        self.progress.update(self.task, advance=amount, fields_text=shown)


class _TimeWord(ProgressColumn):
    """`eta` before the time that is left, `in` before the time it took."""

    def render(self, task: Task) -> Text:
        return Text("in" if task.finished else "eta")


class Console:
    """Implements `Reporter` on stderr; `result` writes what was asked for to stdout.

    `NO_COLOR` and non-terminals are honoured by rich; nothing is said by colour alone.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.err = _Terminal(stderr=True, highlight=False, soft_wrap=True)
        self.out = _Terminal(highlight=False, soft_wrap=True)

    def info(self, text: str) -> None:
        self.err.print(escape(text))

    def warn(self, text: str) -> None:
        self.err.print(f"[yellow]warning:[/] {escape(text)}")

    def error(self, error: GiraffeError) -> None:
        """The message, and the hint on a line of its own."""
        self.err.print(f"[bold red]error:[/] {escape(error.message)}")
        self.err.print(f"\n[cyan]hint:[/] {escape(error.hint or error.usual_hint)}")

    def result(self, value: Any, rendered: RenderableType | list[RenderableType]) -> None:
        """`value` as one JSON object under `--json`, else `rendered` for people."""
        if self.as_json:
            sys.stdout.write(_one_line(value) + "\n")
            return
        for part in rendered if isinstance(rendered, list) else [rendered]:
            self.out.print(part)

    def stream(self, text: str) -> None:
        """A piece of a result that comes bit by bit, into a pipe as it stands; nothing under
        `--json`."""
        if not self.as_json:
            sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()

    @contextlib.contextmanager
    def bar(self, description: str, total: float, unit: str, done: float = 0) -> Iterator[Bar]:
        # Counts, eta and the seven fields of a training fill 100 columns; a bar takes what is left.
        bar_width = min(24, self.err.width - 104)
        columns = (
            TextColumn("{task.description}"),
            *([BarColumn(bar_width)] if bar_width >= 4 else []),
            MofNCompleteColumn(),
            TextColumn(escape(unit)),
            _TimeWord(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn(
                "{task.fields[fields_text]}",
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
        )
        with Progress(*columns, console=self.err, transient=False) as progress:
            task = progress.add_task(
                escape(description), total=total, completed=int(done), fields_text=""
            )
            yield _RichBar(progress, task)


def _one_line(value: Any) -> str:
    """One JSON object a line; control characters beyond ASCII's are escaped as JSON does those."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)
