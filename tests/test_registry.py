"""A plug-in is a file: its name is the file's, and the one concrete class in it is the plug-in."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from abc import ABC, abstractmethod

import pytest

from giraffe_cli.corpus.base import readers
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import tasks
from giraffe_cli.registry import discover, pick
from giraffe_cli.rope.base import strategies
from giraffe_cli.rope.scheme import position_schemes


class AbstractAnimal(ABC):
    @abstractmethod
    def sound(self) -> str: ...


HEADER = f"from {__name__} import AbstractAnimal\n"
COW = HEADER + "class Cow(AbstractAnimal):\n    def sound(self): return 'moo'\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Write plug-in files; returns the importable package."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "__init__.py").touch()

    def write(**files: str) -> str:
        for name, text in files.items():
            (tmp_path / "animals" / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return "animals"

    yield write
    for name in [m for m in sys.modules if m.split(".")[0] == "animals"]:
        del sys.modules[name]


def test_file_names_are_plugin_names_and_underscore_files_are_helpers(folder):
    found = discover(folder(brown_cow=COW, _shared=HEADER), AbstractAnimal)
    assert list(found) == ["brown-cow"]
    assert found["brown-cow"]().sound() == "moo"


def test_imported_and_abstract_classes_are_not_plugins(folder):
    calf = (
        "from animals.cow import Cow\n" + HEADER + "class AbstractYoung(AbstractAnimal): pass\n"
        "class Calf(AbstractYoung):\n    def sound(self): return 'meh'\n"
    )
    found = discover(folder(cow=COW, calf=calf), AbstractAnimal)
    assert {name: kind().sound() for name, kind in found.items()} == {"calf": "meh", "cow": "moo"}


@pytest.mark.parametrize(
    ("text", "count"), [(HEADER, 0), (COW + "class Ox(Cow):\n    pass\n", 2)], ids=["none", "two"]
)
def test_a_file_without_exactly_one_plugin_is_our_bug(folder, text, count):
    with pytest.raises(TypeError, match=f"animals.bad defines {count} AbstractAnimals, needs one"):
        discover(folder(bad=text), AbstractAnimal)


def test_an_unknown_name_lists_near_misses():
    with pytest.raises(InvalidInput, match="unknown RoPE strategy `yran`") as caught:
        pick("yran", strategies(), "RoPE strategy")
    assert "did you mean `yarn`?" in caught.value.hint


@pytest.mark.parametrize("known", [strategies, position_schemes, readers, tasks])
def test_every_plugin_is_a_frozen_dataclass_that_says_what_it_is(known):
    assert known()
    for name, kind in known().items():
        assert dataclasses.is_dataclass(kind), name
        assert kind.__dataclass_params__.frozen, name
        assert kind.summary.strip(), name
        assert not kind.__subclasses__(), f"{name} is not final"
