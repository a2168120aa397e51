"""All of a packing by one backend: of the two, fastokens holds only where it never disagrees."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit import Unit
from giraffe_cli.corpus.unit_files import unit_folder
from giraffe_cli.corpus.workers import tokenise_units
from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import Reporter


def tokenise_alike(
    units: Sequence[Unit],
    numbers: Sequence[int],
    work: Path,
    tools: Tools,
    workers: int,
    reporter: Reporter,
) -> tuple[list[dict[str, Any]], Tools]:
    """As `tokenise_units`, again by tokenizers where one unit needs it; and the tools that did it.

    Raises:
        InvalidInput, GiraffeError: as `tokenise_unit`.
    """
    done = tokenise_units(units, numbers, work, tools, workers, reporter)
    backends = sorted({entry["backend"] for entry in done})
    disagreements = [entry["fallback"] for entry in done if entry["fallback"]]
    # Two backends without a disagreement: a packing was cut off while it fell back.
    reason = disagreements[0] if disagreements else f"units are by {' and '.join(backends)}"
    if len(backends) > 1:
        reporter.warn(f"{reason}; everything is tokenised again by tokenizers")
        slow = tools.config.model_copy(update={"backend": "tokenizers"})
        tools = Tools.of(tools.tokenize.folder, slow, tools.kept)
        for number in numbers:
            shutil.rmtree(unit_folder(work, number))
        done = tokenise_units(units, numbers, work, tools, workers, reporter)
    elif disagreements:
        reporter.warn(f"{reason}; tokenizers is used")
    return done, tools


def check_backends(units: list[Unit], done: list[dict[str, Any]]) -> None:
    """Refuse shards by different backends: one found that they disagree, or was told which to take.

    Raises:
        InvalidInput: units by another than tokenizers are named.
    """
    reasons = [entry["fallback"] for entry in done if entry["fallback"]]
    backends = sorted({entry["backend"] for entry in done})
    if len({backend.partition(" ")[0] for backend in backends}) < 2:  # versions apart
        return
    others = [
        f"{unit.name} of {unit.source} by {entry['backend']}"
        for unit, entry in zip(units, done, strict=True)
        if not entry["backend"].startswith("tokenizers")
    ]
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    reason = reasons[0] if reasons else f"units are by {' and '.join(backends)}"
    raise InvalidInput(
        f"{reason}; tokenised are {', '.join(others[:5])}{more}",
        "run the --shard that holds them again, with --backend tokenizers",
    )
