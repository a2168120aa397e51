"""`giraffe report`: finished and unfinished runs and evaluations, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from giraffe_cli.cli.console import Console
from giraffe_cli.cli.options import AsJson

if TYPE_CHECKING:
    from rich.console import RenderableType

    from giraffe_cli.report.compare import Entry

EXAMPLES = """
Examples:

giraffe report runs/calf-16k

giraffe report runs/yarn runs/ntk --out runs/yarn-against-ntk

giraffe report runs/calf-16k runs/eval-other --json
"""


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `giraffe extend` or `giraffe eval` wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write: a page with the curves of all of them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs and evaluations: what differs in their settings, every score by context
    length, time, memory.

    One finished run shows its summary again, one evaluation is drawn again as its page. A run that
    has not finished is shown with what it has.
    """
    from giraffe_cli.report.compare import caution, read_entries, refuse_run_folder
    from giraffe_cli.report.compare_settings import differing_settings

    console = Console(as_json)
    if out is not None:
        refuse_run_folder(out)
    entries = read_entries(runs)
    if warning := caution(entries):
        console.warn(warning)
    value: dict[str, object] = {
        "runs": [entry.to_json() for entry in entries],
        "differing_settings": differing_settings(entries),
    }
    parts = rendered(entries)
    if out is not None:
        from giraffe_cli.report.compare_page import write_comparison

        page = write_comparison(entries, out)
        value["page"] = str(page)
        parts += ["", f"page  {escape(str(page))}"]
    elif len(entries) == 1 and entries[0].kind == "evaluation" and not of_a_run(runs[0]):
        from giraffe_cli.report.evaluation import write_evaluation
        from giraffe_cli.report.scored import read_results

        page = write_evaluation(read_results(runs[0] / "results.json"), runs[0])
        value["page"] = str(page)
        parts += ["", f"page  {escape(str(page))}"]
    console.result(value, parts)


def of_a_run(evaluation: Path) -> bool:
    """Whether its pictures are those of a run's page, which calls the model otherwise."""
    return (evaluation.resolve().parent / "run.yaml").is_file()


def rendered(entries: list[Entry]) -> list[RenderableType]:
    """The summary of a single finished run, else a table with a column for each entry."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from giraffe_cli.report.compare import read_report
    from giraffe_cli.report.compare_rows import rows
    from giraffe_cli.report.tables import summary_table

    first = entries[0]
    if len(entries) == 1 and first.kind == "run" and first.finished:
        return summary_table(read_report(Path(first.path)), Path(first.path))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for entry in entries:
        table.add_column(escape(entry.name), justify="right", overflow="fold")
    for what, cells in rows(entries):
        table.add_row(what, *map(escape, cells))
    return [
        table,
        "losses in nats per token, lower is better, ± half of the 95% interval; shares with it",
    ]
