"""What compared runs were asked for and differs."""

from __future__ import annotations

import json

import pytest
import yaml
from synthetic_results import make_results

from giraffe_cli.config.building import build, value_at
from giraffe_cli.report.compare import Entry
from giraffe_cli.report.compare_rows import rows
from giraffe_cli.report.compare_settings import differing_settings, setting_rows


@pytest.fixture
def entry(tmp_path):
    """Makes the entry of a run, from what its config says beside its target."""

    def make(name, **values):
        folder = tmp_path / name
        folder.mkdir()
        config = build({"target_length": "2k", **values}).model_dump(mode="json")
        (folder / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return Entry(name, str(folder), "run", finished=False)

    return make


def test_only_what_differs_is_told_and_what_has_a_row_of_its_own_not_twice(entry):
    plain = entry("plain")
    other = entry(
        "other",
        rope={"strategy": "yarn", "knobs": {"factor": 4}},
        train={"loss": "longce", "steps": 7},
        stages=[],
    )
    found = differing_settings([plain, other])
    assert found == {
        "rope.knobs.factor": [None, 4],
        "rope.strategy": ["auto", "yarn"],
        "train.loss": ["ce", "longce"],
        "train.steps": [100, 7],
    }
    assert setting_rows(found) == [
        ("rope.knobs.factor", ["–", "4"]),
        ("train.loss", ["ce", "longce"]),
    ]
    assert ("train.loss", ["ce", "longce"]) in rows([plain, other])
    assert differing_settings([plain, plain]) == {}
    assert differing_settings([other]) == {}


def test_what_only_the_third_run_has_is_told_and_an_evaluation_has_no_settings(entry, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(make_results()))
    scores = Entry("scores", str(tmp_path), "evaluation", finished=True)
    runs = [entry(name) for name in "ab"]
    third = entry("c", data=["x.jsonl", "y"], stages=[1024, {"target_length": "2k", "steps": 3}])
    found = differing_settings([scores, *runs, third])
    assert found["data"] == [None, *[["python-stdlib"]] * 2, ["x.jsonl", "y"]]
    assert list(found) == ["data", "stages"]
    table = dict(setting_rows(found))
    assert table["data"] == ["–", "python-stdlib", "python-stdlib", "x.jsonl, y"]
    assert table["stages"][-1] == "target_length 1024; target_length 2048, steps 3"
    assert table["stages"][1] == "none"


def test_a_run_from_before_a_knob_is_held_to_its_default(entry, tmp_path):
    old, new = entry("old"), entry("new")
    path = tmp_path / "old" / "run.yaml"
    config = yaml.safe_load(path.read_text())
    del config["train"]["loss"], config["eval"]
    path.write_text(yaml.safe_dump({**config, "retired": 1}))
    assert differing_settings([old, new]) == {"retired": [1, None]}


def test_a_path_that_ends_early_leads_to_nothing():
    assert value_at({"a": {"b": 1}}, "a.b") == 1
    assert value_at({"a": {"b": 1}}, "a.b.c") is None
    assert value_at({}, "a") is None
