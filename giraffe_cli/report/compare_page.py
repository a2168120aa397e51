"""The page of a comparison: one self-contained file by the rules of `page.py`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from giraffe_cli import __version__
from giraffe_cli.report.compare import Entry, caution, rows
from giraffe_cli.report.compare_plots import compare_plots
from giraffe_cli.report.page import STYLESHEET, data_uri, style_digest
from giraffe_cli.rundir import atomic_open, make_folder

TEMPLATE, PAGE = "compare.html.j2", "report.html"


def write_comparison(entries: Sequence[Entry], folder: Path) -> Path:
    """Write `report.html` into `folder`; its path.

    Raises:
        InvalidInput, GiraffeError: the folder cannot be made or written.
    """
    package = resources.files("giraffe_cli.report")
    style = (package / STYLESHEET).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({TEMPLATE: (package / TEMPLATE).read_text(encoding="utf-8")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=data_uri)
    page = environment.get_template(TEMPLATE).render(
        style=Markup(style),  # our own file, and the digest below is over exactly these bytes
        style_digest=style_digest(style),
        entries=entries,
        rows=rows(entries),
        caution=caution(entries),
        plots=compare_plots(entries),
        giraffe_version=__version__,
    )
    with atomic_open(make_folder(folder) / PAGE, "w") as handle:
        handle.write(page)
    return folder / PAGE
