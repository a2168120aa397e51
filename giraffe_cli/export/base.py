"""What an export target is: a checkpoint or run in, files that another runtime takes out.

    make_target("gguf").export(Path("runs/mine"), ExportOptions(dtype="q8_0"), reporter)

A target writes nothing under its final name before it has read back and proven what it wrote.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from giraffe_cli.errors import UsageError
from giraffe_cli.progress import Reporter
from giraffe_cli.registry import discover, pick


@dataclass(frozen=True)
class ExportOptions:
    """What the command line may say; None leaves the choice to the target."""

    out: Path | None = None
    dtype: str | None = None
    base_id: str | None = None


@dataclass(frozen=True)
class Exported:
    """What was written: `facts` for `--json` (with `path` and `checks`), `lines` for people."""

    facts: dict[str, Any]
    lines: list[str]


class AbstractTarget(ABC):
    """A form to export to."""

    summary: ClassVar[str]
    """One line: what it writes."""
    takes: ClassVar[frozenset[str]]
    """The `ExportOptions` that have an effect here."""

    @abstractmethod
    def export(self, source: str, options: ExportOptions, reporter: Reporter) -> Exported:
        """Write `source`, a checkpoint or a run directory, and prove what was written.

        Raises:
            UsageError: an option that is no value of its kind.
            InvalidInput: `source` cannot be written in this form, or `out` is in the way.
            GiraffeError: what was written does not read back as it should.
        """


def targets() -> dict[str, type[AbstractTarget]]:
    """Every registered target by name."""
    return discover("giraffe_cli.export.targets", AbstractTarget)


def make_target(name: str) -> AbstractTarget:
    """The target `name`.

    Raises:
        InvalidInput: unknown target.
    """
    return pick(name, targets(), "export target")()


def refuse_idle_options(name: str, target: AbstractTarget, options: ExportOptions) -> None:
    """An option that the target does not read.

    Raises:
        UsageError: naming each.
    """
    given = {f.name for f in fields(options) if getattr(options, f.name) is not None}
    idle = sorted(f"--{option.replace('_', '-')}" for option in given - target.takes)
    if idle:
        raise UsageError(f"{', '.join(idle)} has no effect on --to {name}", "leave it out")
