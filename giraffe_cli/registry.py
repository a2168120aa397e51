"""Plug-in folders: the file name is the name, the one final class in the file is the plug-in.

`discover("giraffe_cli.rope.strategies", AbstractStrategy)` → `{"linear": Linear, ...}`.
Adding a plug-in is adding a file; `ntk_by_parts.py` is known to users as `ntk-by-parts`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TypeVar

from giraffe_cli.errors import InvalidInput, near_misses

Plugin = TypeVar("Plugin")


def discover(folder: str, base: type[Plugin]) -> dict[str, type[Plugin]]:
    """Import every module of the package `folder`; `{name: class}` sorted by name.

    Raises:
        TypeError: a module does not define exactly one concrete subclass of `base`.
    """
    package = importlib.import_module(folder)
    found: dict[str, type[Plugin]] = {}
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda e: e.name):
        if entry.name.startswith("_"):
            continue
        module = importlib.import_module(f"{folder}.{entry.name}")
        classes = [
            value
            for value in vars(module).values()
            if inspect.isclass(value)
            and issubclass(value, base)
            and value.__module__ == module.__name__
            and not inspect.isabstract(value)
        ]
        if len(classes) != 1:
            raise TypeError(f"{module.__name__} defines {len(classes)} {base.__name__}s, needs one")
        found[entry.name.replace("_", "-")] = classes[0]
    return found


def pick(name: str, known: dict[str, type[Plugin]], kind: str) -> type[Plugin]:
    """The class registered as `name`.

    Raises:
        InvalidInput: unknown name; the hint lists near misses and all names.
    """
    if name not in known:
        raise InvalidInput(f"unknown {kind} `{name}`", near_misses(name, known))
    return known[name]
