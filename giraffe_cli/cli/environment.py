"""What is installed here and what the machine has, as one JSON-able object."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli import __version__
from giraffe_cli.errors import InvalidInput

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "giraffe-cli"
_NOT_FOR_USERS = {"dev"}


def examine() -> dict[str, Any]:
    """Everything doctor knows about this installation and machine, JSON-able."""
    packages, problems = required_packages()
    return {
        "ok": not problems,
        "giraffe": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "problems": problems,
        "extras": optional_packages(),
        "devices": devices(),
        "cpu": cpu(),
        "memory_bytes": memory_bytes(),
        "disk": disk(Path.cwd()),
    }


def requirements() -> Iterator[tuple[str | None, Requirement]]:
    """`(extra, requirement)`, None: always needed; from the installed metadata or the source tree.

    Raises:
        InvalidInput: neither is there.
    """
    from packaging.requirements import Requirement

    for extra, line in _declared():
        yield extra, Requirement(line)


def _declared() -> Iterator[tuple[str | None, str]]:
    """The dependency lines as they were written, each with its extra."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        source = Path(__file__).parents[2] / "pyproject.toml"
        if not source.is_file():
            raise InvalidInput(f"{DISTRIBUTION} is not installed", "pip install -e .") from error
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        yield from ((None, line) for line in project["dependencies"])
        for extra, extra_lines in project["optional-dependencies"].items():
            yield from ((extra, line) for line in extra_lines)
        return
    for line in lines:
        package, _, marker = line.partition(";")
        _, is_extra, extra = marker.partition("extra ==")
        yield (extra.strip(" \"')") if is_extra else None), package


def installed(name: str) -> str | None:
    """The version of a distribution; None when it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required_packages() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`{name: {installed, needed, ok}}`, and a sentence with the pip line for each that is not."""
    packages, problems = {}, []
    for extra, requirement in requirements():
        if extra is not None:
            continue
        version = installed(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        needed = str(requirement.specifier)
        packages[requirement.name] = {"installed": version, "needed": needed, "ok": fits}
        if not fits:
            problems.append(
                f"{requirement.name} {version or 'missing'}, needs {needed}: "
                f"pip install '{requirement.name}{needed}'"
            )
    return packages, problems


def optional_packages() -> dict[str, dict[str, Any]]:
    """`{extra: {installed, missing, install}}`; `install` is None when nothing is missing."""
    extras: dict[str, dict[str, Any]] = {}
    for extra, requirement in requirements():
        if extra is None or extra in _NOT_FOR_USERS:
            continue
        entry = extras.setdefault(extra, {"installed": {}, "missing": [], "install": None})
        version = installed(requirement.name)
        if version is not None:
            entry["installed"][requirement.name] = version
        else:
            entry["missing"].append(f"{requirement.name}{requirement.specifier}")
    for entry in extras.values():
        if entry["missing"]:
            quoted = " ".join(f"'{package}'" for package in entry["missing"])
            entry["install"] = f"pip install {quoted}"
    return extras


def devices() -> list[dict[str, Any]]:
    """Each visible GPU: name, memory, bfloat16; empty on a CPU machine."""
    if installed("torch") is None:
        return []
    import torch

    from giraffe_cli.model.precision import gpu_multiplies_bfloat16

    return [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
            "bfloat16": gpu_multiplies_bfloat16(index),
        }
        for index in range(torch.cuda.device_count())
    ]


def cpu() -> dict[str, Any]:
    """Cores this process may use, torch's threads, vector unit, and whether it has bfloat16."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if installed("torch") is None:
        return {"cores": allowed, "bfloat16": None, "torch_threads": None, "capability": None}
    import torch

    from giraffe_cli.model.precision import cpu_multiplies_bfloat16

    return {
        "cores": allowed,
        "bfloat16": cpu_multiplies_bfloat16(),
        "torch_threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def memory_bytes() -> dict[str, int | None]:
    """Memory of the machine, or of the container where that is less, and what a plan may take of
    it: what files' contents fill is free. None where unknown."""
    from giraffe_cli.plan.machine import available_bytes

    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = available_bytes()
    except (ValueError, OSError, AttributeError):
        return {"total": None, "free": None}
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    total = min(total, int(text)) if text.isdigit() else total
    return {"total": total, "free": min(free, total)}


def disk(folder: Path) -> dict[str, Any]:
    """Free and total bytes where runs are written."""
    usage = shutil.disk_usage(folder)
    return {"folder": str(folder), "free_bytes": usage.free, "total_bytes": usage.total}
