"""The whole command surface on one screen, and the one place where exceptions become text."""

from __future__ import annotations

import os
import sys

import typer

from giraffe_cli import __version__
from giraffe_cli.cli import doctor, evaluate, export, extend, merge, pack_data, rope, verify
from giraffe_cli.cli.console import Console
from giraffe_cli.errors import GiraffeError

app = typer.Typer(
    name="giraffe",
    help="Turn a Llama checkpoint into a long-context model, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"giraffe {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True),
) -> None:
    """Turn a Llama checkpoint into a long-context model, and prove it."""


app.command("extend", epilog=extend.EXAMPLES)(extend.extend)
app.command("pack-data", epilog=pack_data.EXAMPLES)(pack_data.pack_data)
app.command("eval", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("merge", epilog=merge.EXAMPLES)(merge.merge)
app.command("export", epilog=export.EXAMPLES)(export.export)
app.command("verify", epilog=verify.EXAMPLES)(verify.verify)
app.add_typer(rope.app, name="rope")
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)


def main() -> None:
    """Run the command line; known errors become text and an exit code, unknown ones a traceback."""
    try:
        app()
    except GiraffeError as error:
        if os.environ.get("GIRAFFE_DEBUG"):
            raise
        Console().error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console().error(GiraffeError("interrupted", "run the same command again to resume"))
        sys.exit(130)


if __name__ == "__main__":
    main()
