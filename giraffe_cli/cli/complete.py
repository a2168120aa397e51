"""What the shell offers after an option: names as the registries have them, and what each is.

    giraffe extend --rope ya<TAB>      yarn, yarn-revised
    giraffe eval M --tasks nll,pa<TAB> nll,passkey

Imports stand inside the functions, so that only a shell that asks pays for them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path

Offer = tuple[str, str]
"""A value and what the shell may show beside it."""


def strategies(incomplete: str) -> list[Offer]:
    """RoPE strategies, each with its summary."""
    from giraffe_cli.rope.base import strategies as known

    return _begin(incomplete, ((name, kind.summary) for name, kind in known().items()))


def strategies_or_auto(incomplete: str) -> list[Offer]:
    """Those, and `auto`."""
    auto = _begin(incomplete, [("auto", "the best of all on your text")])
    return [*auto, *strategies(incomplete)]


def strategies_or_all(incomplete: str) -> list[Offer]:
    """Those, and `all`."""
    return [*_begin(incomplete, [("all", "side by side")]), *strategies(incomplete)]


def tasks(incomplete: str) -> list[Offer]:
    """The last name of a list with commas; those before it are not offered again."""
    from giraffe_cli.evals.base import tasks as known

    before, comma, last = incomplete.rpartition(",")
    offers = _begin(last, ((name, kind.summary) for name, kind in known().items()))
    given = set(before.split(","))
    return [(f"{before}{comma}{name}", told) for name, told in offers if name not in given]


def shapes(incomplete: str) -> list[Offer]:
    """Shapes of `plan --shape`, with window and type."""
    from giraffe_cli.plan.shapes import SHAPES

    facts = ((name, f"window {native}, {dtype}") for name, (_, dtype, native, _) in SHAPES.items())
    return _begin(incomplete, facts)


def devices(incomplete: str) -> list[Offer]:
    """Machines of `plan --device`, with their memory."""
    from giraffe_cli.plan.machine import DEVICES
    from giraffe_cli.units import format_bytes

    facts = ((name, format_bytes(device.memory_bytes)) for name, device in DEVICES.items())
    return _begin(incomplete, facts)


def suites(incomplete: str) -> list[Offer]:
    """Suites of `eval`, with the number of their tasks."""
    from giraffe_cli.evals.suites import SUITES

    return _begin(incomplete, ((name, f"{len(one.tasks)} tasks") for name, one in SUITES.items()))


def executor_names() -> list[str]:
    """Executors of `pack-data`."""
    return _plugins("giraffe_cli.corpus.executors")


def executors(incomplete: str) -> list[Offer]:
    """Those that begin so."""
    return _begin(incomplete, ((name, "") for name in executor_names()))


def export_target_names() -> list[str]:
    """Targets of `export --to`."""
    return _plugins("giraffe_cli.export.targets")


def export_targets(incomplete: str) -> list[Offer]:
    """Those that begin so."""
    return _begin(incomplete, ((name, "") for name in export_target_names()))


def configs(incomplete: str) -> list[str]:
    """Names of presets, YAML files and folders at hand."""
    from giraffe_cli.presets import presets

    found = list(Path().glob(f"{incomplete}*")) if _is_relative(incomplete) else []
    folders = [f"{path}/" for path in found if path.is_dir() and not path.name.startswith(".")]
    files = [str(path) for path in found if path.suffix in (".yaml", ".yml")]
    if len(folders) == 1 and not files:  # else the shell puts a space behind the only offer
        files = [str(path) for path in Path(folders[0]).glob("*.y*ml")]
    return sorted({*folders, *files, *(name for name in presets() if name.startswith(incomplete))})


def file_dtypes(incomplete: str) -> list[str]:
    """Types of numbers in a GGUF file."""
    return [name for name in ("f16", "bf16", "f32", "q8_0") if name.startswith(incomplete)]


def _plugins(folder: str) -> list[str]:
    """Names of a plug-in folder by its files, which may import what is large."""
    package = importlib.import_module(folder)
    names = (entry.name for entry in pkgutil.iter_modules(package.__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def _begin(incomplete: str, offers: Iterable[Offer]) -> list[Offer]:
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def _is_relative(incomplete: str) -> bool:
    """What a glob from here can find: no absolute path, no way up, no pattern."""
    return not incomplete.startswith(("/", "~")) and not set(incomplete) & set("*?[")
