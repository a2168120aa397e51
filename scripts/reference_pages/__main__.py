"""The reference pages of the documentation, made from the code.

    python scripts/reference_pages DIR      writes DIR/*.md, *.json and the strategies' pictures

Nothing here is written by hand but the sentences that lead in.
"""

from __future__ import annotations

import sys
from pathlib import Path

from commands import commands_page
from files import files_page
from knobs import config_page, config_schema
from plugins import draw_strategies, strategies_page, tasks_page
from told_errors import errors_page

PAGES = {
    "commands.md": commands_page,
    "config.md": config_page,
    "config.schema.json": config_schema,
    "strategies.md": strategies_page,
    "tasks.md": tasks_page,
    "files.md": files_page,
    "errors.md": errors_page,
}


def write_pages(folder: Path) -> None:
    """Every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, made in PAGES.items():
        (folder / name).write_text(made(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
    draw_strategies(Path(sys.argv[1]))
