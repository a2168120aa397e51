"""Every error a user can cause: what was found, what was needed, what to run.

The command line turns a `GiraffeError` into text and an exit code in one place (`cli/app.py`).
Errors of ours (a broken invariant) stay ordinary exceptions, so that a traceback is a bug report.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable
from typing import ClassVar, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class GiraffeError(Exception):
    """A failure while running. `message` states the fact, `hint` the command or edit that helps."""

    exit_code: ClassVar[int] = 1
    usual_hint: ClassVar[str] = "GIRAFFE_DEBUG=1 before the same command shows where it failed"
    """What is shown where `hint` says nothing better."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GiraffeError):
    """Options that contradict each other."""

    exit_code = 2
    usual_hint = "the command with --help shows what goes together"


class InvalidInput(GiraffeError):
    """A config, corpus or checkpoint that cannot be used as it is."""

    exit_code = 3
    usual_hint = "mend or replace what is named, then run the same command again"


class DoesNotFit(GiraffeError):
    """The job needs more memory than the machine has."""

    exit_code = 4
    usual_hint = "giraffe plan shows what would fit; a shorter --window needs less"


class FirstStepDoesNotFit(DoesNotFit):
    """Memory ran out in the first step a process took, where a smaller setting may still help."""


class GateFailed(GiraffeError):
    """A quality gate's interval lies on the wrong side of its threshold."""

    exit_code = 5


class Interrupted(GiraffeError):
    """Stopped by a signal after saving; the same command resumes."""

    exit_code = 130


class Terminated(Interrupted):
    """Ended by SIGTERM or SIGUSR1 where no stage had a checkpoint to save."""

    exit_code = 143


def near_misses(name: str, known: Iterable[str]) -> str:
    """`did you mean x or y? known: a, b, c`, for a hint."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(f'`{c}`' for c in close)}? " if close else ""
    return f"{question}known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """What a library's error says first, or what it is where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def raise_together(problems: list[str], subject: str, hint: str | None = None) -> None:
    """Raise one `InvalidInput` that lists every problem; nothing when there is none."""
    if len(problems) == 1:
        raise InvalidInput(f"{subject}: {problems[0]}", hint)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise InvalidInput(f"{subject}: {len(problems)} problems\n{listed}", hint)


class Problems:
    """What a user has to mend, gathered over several checks so that all of it is told at once.

    problems = Problems()
    checkpoint = problems.note(inspect, source, folder)      # None where it refuses
    problems.note(check_trackers, names)
    problems.settle()
    """

    def __init__(self) -> None:
        self.found: list[InvalidInput | UsageError] = []

    def note(
        self,
        check: Callable[Arguments, Result],
        *values: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result | None:
        """What `check` returns; None where it refuses, which is kept, the same thing once."""
        try:
            return check(*values, **named)
        except (InvalidInput, UsageError) as error:
            if error.message not in [known.message for known in self.found]:
                self.found.append(error)
        return None

    def settle(self) -> None:
        """Nothing where nothing was found.

        Raises:
            InvalidInput, UsageError: the one problem as it was raised. Of several, one error that
                lists each with its hint; a UsageError where all of them are.
        """
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            are_usage = all(isinstance(error, UsageError) for error in self.found)
            listed = "\n".join(map(_listed, self.found))
            kind = UsageError if are_usage else InvalidInput
            raise kind(f"{len(self.found)} problems\n{listed}", "mend them all, then run it again")


def _listed(error: GiraffeError) -> str:
    """The message as an entry of a list, its hint below it."""
    text = f"{error.message}\nhint: {error.hint or error.usual_hint}"
    return "  - " + textwrap.indent(text, "    ").lstrip()


def not_finite(name: str) -> InvalidInput:
    """The refusal of a base whose tensor `name` holds what is no number."""
    return InvalidInput(
        f"{name} of the base holds NaN or infinities", "download or save the base again"
    )
