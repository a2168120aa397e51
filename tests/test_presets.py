"""Configs by name, from a checkout and from an installed package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from giraffe_cli import presets as module
from giraffe_cli.checkpoint_source import short_name
from giraffe_cli.cli.extend_input import gather
from giraffe_cli.config.building import build
from giraffe_cli.errors import InvalidInput, UsageError
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
        ({}, ["rope.strategy = ntk"], {"strategy": "ntk"}),
        ({}, ["target_length=32k"], {"strategy": "yarn"}),
        (
            {"target_length": "4k"},
            ["target_length=16k"],
            {"strategy": "yarn", "knobs": {"factor": 24}},
        ),
        ({}, ["stages=[2k,4k]"], {"strategy": "yarn"}),
    ],
)
def test_the_knobs_of_calfs_table_hold_for_it_alone(flags, assignments, rope):
    assert gather(None, flags, assignments)["rope"] == rope


def test_calfs_settings_are_for_calf_alone():
    """However another model is named: it had calf's rank, rate and table."""
    assert gather(None, {"target_length": "1k"}, ["model=other"]) == {
        "target_length": "1k",
        "model": "other",
    }
    assert "train" in gather(None, {"target_length": "1k"}, ["model=calf"])


@pytest.mark.parametrize(
    "assignment", ["target_length=2k", "stages=[2k,4k]", "stages=[{target_length: 2k}]"]
)
def test_a_short_target_has_full_windows_however_it_is_given(assignment):
    values = gather(None, {}, [assignment])
    assert values["train"]["window"] in ("2k", "4k")
    build(values)


class TestWhatEveryStageSets:
    STAGES = """
target_length: 4k
stages:
  - {target_length: 2k, steps: 2, window: 1k, strategy: yarn}
  - {target_length: 4k, steps: 3, window: 1k, strategy: ntk, learning_rate: 1e-4}
"""

    @pytest.mark.parametrize(
        ("flags", "assignments", "path"),
        [
            ({"train.steps": 0}, [], "train.steps"),
            ({"train.window": "512"}, [], "train.window"),
            ({}, ["train.window=512"], "train.window"),
            ({"rope.strategy": "ntk"}, [], "rope.strategy"),
        ],
    )
    def test_has_no_effect_beside_them_and_is_refused(self, tmp_path, flags, assignments, path):
        (tmp_path / "c.yaml").write_text(self.STAGES)
        with pytest.raises(UsageError, match=f"{path} has no effect: every stage of the config"):
            gather(tmp_path / "c.yaml", flags, assignments)

    def test_what_one_leaves_out_or_stages_of_the_command_line_have_it(self, tmp_path):
        (tmp_path / "c.yaml").write_text(self.STAGES)
        one = gather(tmp_path / "c.yaml", {}, ["train.learning_rate=1e-3"])
        assert float(one["train"]["learning_rate"]) == 1e-3
        assert gather(tmp_path / "c.yaml", {"stages": ["2k", "4k"], "train.steps": 9}, [])

    def test_what_is_null_is_the_runs_own(self, tmp_path):
        """As `run.yaml` writes it."""
        run = build({"target_length": "4k", "stages": ["2k", "4k"]}).model_dump(mode="json")
        (tmp_path / "run.yaml").write_text(json.dumps(run))
        assert gather(tmp_path / "run.yaml", {"train.steps": 2}, [])["train"]["steps"] == 2


def test_a_value_where_a_list_is_needed_shows_how_to_write_one(giraffe):
    done = giraffe("extend", "--target-len", "2k", "--set", "data=x.jsonl", "--dry-run")
    assert done.code == 3
    assert "hint: a list of one: [x.jsonl]" in done.stderr


@pytest.mark.parametrize(
    ("source", "name"),
    [("meta/llama", "llama"), ("models/smol.gguf", "smol"), (".", "here"), ("..", "above")],
)
def test_a_checkpoint_has_a_name_wherever_it_lies(tmp_path, monkeypatch, source, name):
    """`.` gave none: runs/-16k."""
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert short_name(source) == name
