"""Dependencies are pinned and their licences listed; what `scripts/check_packages.py` asks for."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from conftest import load_script
from packaging.utils import canonicalize_name

from giraffe_cli import __version__

ROOT = Path(__file__).parent.parent


licences, check_packages = load_script("licences"), load_script("check_packages")
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M
    )
}
DIRECT = list(licences.direct())


@pytest.mark.parametrize("requirement", [one for _, one in DIRECT], ids=str)
def test_a_dependency_is_pinned_within_what_is_asked_for(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_what_dependencies_need_in_turn_is_pinned():
    """As far as they are installed here; all of them are where the page of licences is made."""
    needed = set().union(*(licences.reached(requirement) for _, requirement in DIRECT))
    assert needed <= PINS.keys()


def test_every_pinned_package_has_its_licence_and_nothing_else_is_listed():
    listed = licences.entries()
    assert listed.keys() == PINS.keys()
    assert all(told.strip() for told in listed.values())


def test_the_licences_are_those_of_the_installed_packages():
    """Of the pinned versions; another version may be under another licence."""
    listed = licences.entries()
    here = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    checked = [n for n, version in here.items() if PINS.get(canonicalize_name(n)) == version]
    assert len(checked) > 20
    assert {n: licences.licence(n) for n in checked} == {
        n: listed[canonicalize_name(n)] for n in checked
    }


def test_nothing_that_giraffe_itself_needs_is_under_copyleft():
    page = licences.PAGE.read_text(encoding="utf-8")
    strict = re.findall(r"^\| (\S+) \| [^|]*\bA?L?GPL[^|]* \| ([^|]+) \|$", page, flags=re.M)
    assert strict == [("chardet", "[eval]"), ("dominate", "[eval]")]


def test_the_version_is_the_changelogs_newest():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert newest in (__version__, "Unreleased")


def test_packages_are_the_package_and_the_presets():
    files = {"giraffe_cli/a.py", "configs/recipes/b.yaml", "tests/c.py", "README.md", ".ci/run"}
    assert check_packages.expected_in_wheel(files) == {
        "giraffe_cli/a.py",
        "giraffe_cli/presets/recipes/b.yaml",
    }
    assert check_packages.expected_in_source(files) == files - {"tests/c.py", ".ci/run"}


def test_a_file_too_many_or_too_few_is_named():
    assert check_packages._difference("w", {"a", "c"}, {"a", "b"}) == ["w lacks b", "w holds c"]
