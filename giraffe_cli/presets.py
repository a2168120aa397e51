"""The configs that ship with giraffe, by name: `llama3-8b-64k`, `recipes/yarn-7b-128k`.

A checkout has them in `configs/`, an installed package in `giraffe_cli/presets/`.
"""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.errors import InvalidInput, near_misses

PACKAGE = Path(__file__).parent


def presets() -> dict[str, Path]:
    """Name → file; empty where neither folder is there."""
    for folder in (PACKAGE / "presets", PACKAGE.parent / "configs"):
        if folder.is_dir():
            files = sorted(folder.rglob("*.yaml"))
            return {str(path.relative_to(folder).with_suffix("")): path for path in files}
    return {}


def config_path(named: Path) -> Path:
    """A file as it is named, or the preset of that name.

    Raises:
        InvalidInput: there is neither.
    """
    if named.exists():
        return named
    known, name = presets(), str(named)
    if name in known:
        return known[name]
    bare = name.removeprefix("configs/").removesuffix(".yaml")
    hint = f"--config {bare} is the preset of that name" if bare in known else None
    raise InvalidInput(f"no config file or preset `{name}`", hint or near_misses(name, known))
