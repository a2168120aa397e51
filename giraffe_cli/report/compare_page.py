"""The page of a comparison: one self-contained file by the rules of `templates.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from giraffe_cli.report.compare import Entry, caution
from giraffe_cli.report.compare_plots import compare_plots
from giraffe_cli.report.compare_rows import rows
from giraffe_cli.report.templates import render
from giraffe_cli.rundir import atomic_open, make_folder
from giraffe_cli.units import counted

TEMPLATE, PAGE = "compare.html.j2", "report.html"


def write_comparison(entries: Sequence[Entry], folder: Path) -> Path:
    """Write `report.html` into `folder`; its path.

    Raises:
        InvalidInput, GiraffeError: the folder cannot be made or written.
    """
    page = render(
        TEMPLATE,
        {
            "entries": entries,
            "headline": headline(entries),
            "rows": rows(entries),
            "caution": caution(entries),
            "plots": compare_plots(entries),
        },
    )
    with atomic_open(make_folder(folder) / PAGE, "w") as handle:
        handle.write(page)
    return folder / PAGE


def headline(entries: Sequence[Entry]) -> str:
    """`3 runs side by side`, `1 run and 2 evaluations side by side`."""
    counts = [
        (kind, sum(entry.kind == kind for entry in entries)) for kind in ("run", "evaluation")
    ]
    parts = [counted(count, kind) for kind, count in counts if count]
    return f"{' and '.join(parts)}{' side by side' * (len(entries) > 1)}"
