"""What a source distribution and wheels hold: all they must, and nothing else.

    python scripts/check_packages.py giraffe_cli-0.1.0.tar.gz giraffe_cli-0.1.0-py3-none-any.whl ...

Every file of a wheel is one of the package, a preset or its metadata; a source distribution is the
package, the configs and the files beside them; all wheels hold the same.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
BESIDE = {"README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "pyproject.toml"}
MADE = {"PKG-INFO", ".gitignore"}
"""What hatchling adds to a source distribution."""


def tracked(root: Path = ROOT) -> set[str]:
    """The files that belong to the project: those git knows, or what is there outside git."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        return {name for name in listed.stdout.splitlines() if (root / name).exists()}
    found = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(root).as_posix() for path in found}


def of_source(path: Path) -> set[str]:
    """Names in a source distribution, without its folder."""
    with tarfile.open(path) as archive:
        names = [PurePosixPath(one.name) for one in archive.getmembers() if one.isfile()]
    return {PurePosixPath(*name.parts[1:]).as_posix() for name in names}


def of_wheel(path: Path) -> dict[str, int]:
    """Name → checksum of what a wheel holds, but for RECORD, which lists it."""
    with zipfile.ZipFile(path) as archive:
        entries = [one for one in archive.infolist() if not one.is_dir()]
        return {one.filename: one.CRC for one in entries if not one.filename.endswith("/RECORD")}


def expected_in_source(files: Iterable[str]) -> set[str]:
    """Of the project's files, those a source distribution has."""
    return {
        name for name in files if name in BESIDE or name.startswith(("giraffe_cli/", "configs/"))
    }


def expected_in_wheel(files: Iterable[str]) -> set[str]:
    """The package, and `configs/` as its presets."""
    wanted = [name for name in files if name.startswith(("giraffe_cli/", "configs/"))]
    return {
        f"giraffe_cli/presets/{name.removeprefix('configs/')}"
        if name.startswith("configs/")
        else name
        for name in wanted
    }


def problems(source: Path, wheels: list[Path]) -> list[str]:
    """What is missing or too much, a sentence each."""
    files = tracked()
    found = _difference(source.name, of_source(source) - MADE, expected_in_source(files))
    held = [of_wheel(wheel) for wheel in wheels]
    for wheel, names in zip(wheels, held, strict=True):
        inside = {name for name in names if ".dist-info/" not in name}
        found += _difference(wheel.name, inside, expected_in_wheel(files))
        if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
            found.append(f"{wheel.name} holds no licence")
    if any(names != held[0] for names in held):
        found.append("the wheel that the source distribution builds is another")
    return found


def _difference(where: str, found: set[str], expected: set[str]) -> list[str]:
    missing, other = sorted(expected - found), sorted(found - expected)
    return [f"{where} lacks {name}" for name in missing] + [
        f"{where} holds {name}" for name in other
    ]


def main(arguments: list[str]) -> None:
    source, *wheels = map(Path, arguments)
    if found := problems(source, wheels):
        sys.exit("\n".join(found))
    print(
        f"{source.name}: {len(of_source(source))} files; {wheels[0].name}: "
        f"{len(of_wheel(wheels[0]))} files, {wheels[0].stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
