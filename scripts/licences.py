"""The licences of everything that giraffe, its extras and its tests install, from the packages' own
metadata: `docs/licences.md`.

    .venv/bin/python scripts/licences.py          where all of constraints.txt is installed

Nothing is left out: a package of `constraints.txt` that is not installed, or whose metadata names
no licence, ends the script.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
HEAD = """\
# Licences of dependencies

giraffe is under the Apache License 2.0 (`LICENSE`). The table lists what it installs, in the versions of `constraints.txt`: for itself, for an extra, or for its tests and documentation alone. It is made by `scripts/licences.py` from the metadata of the installed packages; none of them is part of giraffe's own files. On Linux torch brings its build for CUDA as well, which no other package needs: Triton (MIT) and NVIDIA's libraries (`nvidia-*`, `cuda-*`), most under NVIDIA's own terms, in the versions that torch names. calf, the embedded model, was trained for giraffe and is under giraffe's licence.

| package | licence | installed for |
|---|---|---|
"""  # noqa: E501 - a paragraph is one line
FAMILY = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache license": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "the mit license (mit)": "MIT",
}
"""What classifiers and free text call a licence → its SPDX name, where it has one."""


def pinned(path: Path = ROOT / "constraints.txt") -> list[str]:
    """The names in `constraints.txt`, as they are written there."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.partition("==")[0] for line in lines if line and not line.startswith("#")]


def licence(name: str) -> str:
    """The licence of an installed package: its SPDX expression, else its classifier, else the
    first line of its free text or of its licence file; empty where it says nothing."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return str(expression)
    named = [
        entry.rpartition(" :: ")[2]
        for entry in about.get_all("Classifier") or []
        if entry.startswith("License :: ") and entry != "License :: OSI Approved"
    ]
    text = (about.get("License") or "").strip().splitlines()
    found = named or text[:1] or _first_line(name)
    return " OR ".join(FAMILY.get(one.strip().lower(), one.strip()) for one in found)


def _first_line(name: str) -> list[str]:
    """Of the licence file among a package's metadata."""
    for file in metadata.files(name) or []:
        if file.name == "LICENSE" and ".dist-info" in str(file):
            return str(file.read_text()).strip().splitlines()[:1]
    return []


def direct() -> Iterator[tuple[str, Requirement]]:
    """What `pyproject.toml` asks for, with `giraffe` or the extra's name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from (("giraffe", Requirement(line)) for line in project["dependencies"])
    for extra, lines in project["optional-dependencies"].items():
        yield from ((f"[{extra}]", Requirement(line)) for line in lines)


def reached(requirement: Requirement) -> set[str]:
    """Canonical names of an installed requirement and all that it needs in turn, on any system;
    without what torch's build for CUDA brings, which torch itself pins."""
    found: set[str] = set()
    waiting = [(requirement.name, requirement.extras)]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        if key in found and not extras:
            continue
        found.add(key)
        for line in _requires(name):
            needed = Requirement(line)
            if is_of_cuda(needed.name) or canonicalize_name(needed.name) in found:
                continue
            if _applies(needed, extras):
                waiting.append((needed.name, needed.extras))
    return found


def is_of_cuda(name: str) -> bool:
    """Whether it comes with torch's build for CUDA alone."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:  # of another system, such as Windows
        return []


def _applies(needed: Requirement, extras: set[str]) -> bool:
    """Whether it is installed here, or by an extra that was asked for."""
    if needed.marker is None:
        return True
    return any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def rows() -> list[tuple[str, str, str]]:
    """(package, licence, installed for), by name.

    Raises:
        SystemExit: a pinned package is missing here, or names no licence.
    """
    users: dict[str, list[str]] = {}
    for user, requirement in direct():
        for name in reached(requirement):
            if user not in users.setdefault(name, []):
                users[name].append(user)
    found, problems = [], []
    for name in pinned():
        try:
            told = licence(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed")
            continue
        if not told:
            problems.append(f"{name} names no licence")
        needed = users.get(canonicalize_name(name), [])
        users_of = ["giraffe"] if "giraffe" in needed else needed or ["other systems"]
        found.append((name, told, ", ".join(users_of)))
    if problems:
        sys.exit("\n".join([*problems, "install all of constraints.txt, then run this again"]))
    return sorted(found, key=lambda row: row[0].lower())


def entries(page: Path = PAGE) -> dict[str, str]:
    """Canonical name → licence, as the page has them."""
    lines = re.findall(r"^\| ([^|]+) \| ([^|]+) \| [^|]+ \|$", page.read_text("utf-8"), flags=re.M)
    return {canonicalize_name(name): told for name, told in lines if name != "package"}


def main() -> None:
    table = [f"| {name} | {told} | {users} |" for name, told, users in rows()]
    PAGE.write_text(HEAD + "\n".join(table) + "\n", encoding="utf-8")
    print(f"{PAGE}: {len(table)} packages")


if __name__ == "__main__":
    main()
