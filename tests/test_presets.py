"""Configs by name, from a checkout and from an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from giraffe_cli import presets as module
from giraffe_cli.cli.extend_input import gather
from giraffe_cli.errors import InvalidInput
from giraffe_cli.presets import config_path, presets

CONFIGS = Path(__file__).parent.parent / "configs"


def test_every_config_of_the_checkout_has_a_name():
    known = presets()
    assert known["llama3-8b-64k"] == CONFIGS / "llama3-8b-64k.yaml"
    assert known["recipes/yarn-7b-128k"] == CONFIGS / "recipes" / "yarn-7b-128k.yaml"
    assert sorted(known.values()) == sorted(CONFIGS.rglob("*.yaml"))


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    (tmp_path / "giraffe_cli" / "presets").mkdir(parents=True)
    (tmp_path / "giraffe_cli" / "presets" / "mine.yaml").write_text("target_length: 4k\n")
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "giraffe_cli")
    assert list(presets()) == ["mine"]


def test_a_file_stands_over_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_path(Path("calf-16k")) == CONFIGS / "calf-16k.yaml"
    Path("calf-16k").write_text("target_length: 4k\n")
    assert config_path(Path("calf-16k")) == Path("calf-16k")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama3-8b-64", "did you mean `llama3-8b-64k`"),
        ("configs/calf-16k.yaml", "--config calf-16k is the preset of that name"),
    ],
)
def test_what_is_neither_is_named(giraffe, tmp_path, monkeypatch, name, hint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="no config file or preset") as raised:
        config_path(Path(name))
    assert hint in str(raised.value.hint)
    assert giraffe("extend", "--config", name).code == 3


def test_a_preset_is_planned_by_name(giraffe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shape = ("--shape", "llama3-8b", "--device", "h200")
    done = giraffe("plan", "--config", "llama3-8b-64k", *shape)
    assert done.code == 0, done.stderr


@pytest.mark.parametrize(
    ("flags", "assignments", "rope"),
    [
        ({"target_length": "16k"}, [], {"strategy": "yarn", "knobs": {"factor": 24}}),
        ({"target_length": "4k"}, [], {"strategy": "yarn"}),
        ({"stages": ["4k", "16k"]}, [], {"strategy": "yarn"}),
        ({"rope.strategy": "ntk"}, [], {"strategy": "ntk"}),
        ({}, ["rope.strategy=ntk"], {"strategy": "ntk"}),
    ],
)
def test_the_knobs_of_calfs_table_hold_for_it_alone(flags, assignments, rope):
    assert gather(None, flags, assignments)["rope"] == rope
