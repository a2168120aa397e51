"""The whole command surface on one screen, and the one place where exceptions become text.

Only the module of the command that was asked for is imported: all of them take 0.24 CPU-seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperGroup

from giraffe_cli import __version__
from giraffe_cli.cli.console import Console
from giraffe_cli.cli.terminated import SignalledToEnd, ending_in_order
from giraffe_cli.errors import DoesNotFit, GiraffeError, Interrupted, Terminated, UsageError
from giraffe_cli.units import visible

COMMANDS = {
    "extend": "extend.extend",
    "init": "init.init",
    "plan": "plan.plan",
    "pack-data": "pack_data.pack_data",
    "eval": "evaluate.evaluate",
    "generate": "generate.generate",
    "report": "report.report",
    "merge": "merge.merge",
    "export": "export.export",
    "verify": "verify.verify",
    "rope": "rope.app",
    "doctor": "doctor.doctor",
}
"""Command → module and function (or group) below this package, in the order of the help."""
QUIET = (
    # where it is installed, PEFT imports it, and it asks for a kernel we do not use
    "bitsandbytes.backends.cpu.ops",
    # it warns of the keys that vLLM reads; what is wrong with a table, `inspect` and `verify` say
    "transformers.modeling_rope_utils",
)
"""Loggers whose warnings are no news to a user."""


SHAPES_KEPT = {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Products in 16 bits on a CPU are prepared for each shape, and torch and oneDNN keep 1,024 of them
each: documents come in every length, and so 300 lengths of a small layer's products held 1.0 GB.
A step has fewer, which its layers share: SmolLM2's over a window of one length 37."""
RESUMING = "run the same command again; extend, pack-data, eval and rope go on where they stopped"


class _Commands(TyperGroup):
    """Typer ends with 130 and without a word where a command is interrupted: it is told here. An
    empty word, as an unset variable of a shell leaves it, would be the folder the command runs in.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, word in zip(["giraffe", *args], args, strict=False):
            if not word or (word.startswith("--") and word.endswith("=") and word.count("=") == 1):
                told = f"{word.removesuffix('=') or before}: nothing is given"
                raise UsageError(told, "is a variable of the shell unset?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted("interrupted", RESUMING) from stop


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"giraffe {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
) -> None:
    """Turn a Llama checkpoint into a long-context model, and prove it."""


def make_app(names: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with the commands `names`."""
    app = typer.Typer(
        name="giraffe",
        cls=_Commands,
        help="Turn a Llama checkpoint into a long-context model, and prove it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for name in names:
        file, _, attribute = COMMANDS[name].partition(".")
        module = importlib.import_module(f"giraffe_cli.cli.{file}")
        found = getattr(module, attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name, epilog=module.EXAMPLES)(found)
    return app


def _asked() -> list[str]:
    """The first word behind `giraffe`; of the line that is being typed where a shell asks."""
    if "_GIRAFFE_COMPLETE" not in os.environ:
        return sys.argv[1:2]
    typed = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
    return typed.split()[1:2]


def harmless_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """A record of any library, its colours kept: names out of foreign files command no terminal."""
    record = logging.LogRecord(*arguments, **named)
    with contextlib.suppress(Exception):  # the library's own mistake, which logging tells
        text = record.getMessage()
        if not text.isprintable():
            parts = re.split(r"(\x1b\[[0-9;]*m)", text)
            record.msg = "".join(p if n % 2 else visible(p) for n, p in enumerate(parts))
            record.args = None
    return record


def of_the_machine(error: OSError) -> GiraffeError:
    """A disk, a folder or a network that failed where no stage expected it."""
    where = f"{error.filename}: " if error.filename else ""
    if isinstance(error, PermissionError):
        hint = "you may not read or write it: look with ls -l, and as which user (id) you run"
    else:
        hint = "check that the folder is there and not full, then run the same command again"
    return GiraffeError(f"{where}{error.strerror or error}", hint)


def main() -> None:
    """Run the command line; errors of users and machines become text and an exit code, ours a
    traceback."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a table has signs that Latin-1 has not
            stream.reconfigure(errors="replace")
    logging.setLogRecordFactory(harmless_record)
    for name, count in SHAPES_KEPT.items():  # read once, when torch multiplies first
        os.environ.setdefault(name, count)
    try:
        asked = _asked()
        names = asked if asked and asked[0] in COMMANDS else tuple(COMMANDS)
        with ending_in_order():
            make_app(names)(prog_name="giraffe")
    except GiraffeError as error:
        if os.environ.get("GIRAFFE_DEBUG"):
            raise
        Console().error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if os.environ.get("GIRAFFE_DEBUG"):
            raise
        Console().error(of_the_machine(error))
        sys.exit(GiraffeError.exit_code)
    except (MemoryError, RuntimeError) as error:
        # here, because it needs torch, which not every command does
        from giraffe_cli.model.out_of_memory import is_out_of_memory, outside_of_a_step

        if os.environ.get("GIRAFFE_DEBUG") or not is_out_of_memory(error):
            raise
        Console().error(outside_of_a_step(error))
        sys.exit(DoesNotFit.exit_code)
    except SignalledToEnd as stop:
        ended = Terminated(f"ended by {stop.name}", RESUMING)
        Console().error(ended)
        sys.exit(ended.exit_code)
    except KeyboardInterrupt:
        Console().error(GiraffeError("interrupted", RESUMING))
        sys.exit(130)


if __name__ == "__main__":
    main()
