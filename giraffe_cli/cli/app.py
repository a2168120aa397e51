"""The whole command surface on one screen, and the one place where exceptions become text.

Only the module of the command that was asked for is imported: all of them take 0.24 CPU-seconds.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterable

import typer

from giraffe_cli import __version__
from giraffe_cli.cli.console import Console
from giraffe_cli.errors import GiraffeError

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


RESUMING = "run the same command again; extend, pack-data, eval and rope go on where they stopped"


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


def main() -> None:
    """Run the command line; known errors become text and an exit code, unknown ones a traceback."""
    # where bitsandbytes is installed, PEFT imports it, and it asks for a kernel we do not use
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        asked = _asked()
        make_app(asked if asked and asked[0] in COMMANDS else tuple(COMMANDS))(prog_name="giraffe")
    except GiraffeError as error:
        if os.environ.get("GIRAFFE_DEBUG"):
            raise
        Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console().error(GiraffeError("interrupted", RESUMING))
        sys.exit(130)


if __name__ == "__main__":
    main()
