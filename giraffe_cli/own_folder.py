"""Which folder a command may write into: a new or empty one, or one that it wrote before.

Files of ours beside a model's would speak for it: `rope.json` names its table, and an evaluation's
page stands where the run's is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import read_kept

OF_A_MODEL = ("config.json", "adapter_config.json")
CACHE = "cache"
"""Where what was read lies, before there is a result."""
HINT = "choose another --out"


def refuse_a_models(folder: Path) -> None:
    """Nothing is written beside a model's or an adapter's files.

    Raises:
        InvalidInput: `folder` holds some.
    """
    for name in OF_A_MODEL:
        if (folder / name).is_file():
            raise InvalidInput(f"{folder} is the folder of a model: it holds {name}", HINT)


def refuse_anothers(folder: Path, results: Sequence[str], pages: Sequence[str] = ()) -> None:
    """Nothing is written over that this command did not write.

    Args:
        results: its JSON files and lines, any of which says that the folder is its own.
        pages: what else it writes by fixed names; pictures are not looked at.

    Raises:
        InvalidInput: `folder` is a model's or a run's, or holds such files, no result of ours and
            nothing that was read for one.
    """
    refuse_a_models(folder)
    if (folder / "run.yaml").is_file():
        raise InvalidInput(f"{folder} is the folder of a run of giraffe extend", HINT)
    if any((folder / CACHE).glob("*.jsonl")) or any(_is_ours(folder / name) for name in results):
        return
    found = [name for name in (*results, *pages) if (folder / name).exists()]
    if found:
        raise InvalidInput(
            f"{folder} holds {', '.join(found)}, damaged or not written by this command",
            HINT,
        )


def _is_ours(result: Path) -> bool:
    if result.suffix == ".jsonl":
        return _is_a_sample(result)
    kept = read_kept(result)
    return isinstance(kept, dict) and "schema_version" in kept


def _is_a_sample(lines: Path) -> bool:
    """By the first line, which is all there is of an evaluation that was killed as it ended."""
    try:
        with lines.open(encoding="utf-8") as handle:
            first = json.loads(handle.readline(1 << 24))
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and "prompt_sha256" in first
