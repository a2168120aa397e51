"""What giraffe computes from says when a byte of it changed; a cut config is no shorter config."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from synthetic_results import make_results
from tiny_runs import make_adapter, make_base, merge, table_for

from giraffe_cli.adapter import read_adapter
from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.config.files import read_sealed_yaml, write_sealed_yaml
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Outcome
from giraffe_cli.evals.cache import OutcomeCache, read_states
from giraffe_cli.evals.subject import Subject
from giraffe_cli.report.scored import read_results
from giraffe_cli.rundir import finish_stage, read_json, read_kept, stage_holds, write_sealed

VALUE = {"steps": 3, "loss": 0.1 + 0.2, "by": {"ä": None}}


def flips(path):
    """Every single-bit change of the file, each undone."""
    data = path.read_bytes()
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            yield position, bit
    path.write_bytes(data)


def test_no_flipped_bit_gives_another_value(tmp_path):
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    assert read_json(path) == VALUE
    for _ in flips(path):
        kept = read_kept(path)
        assert kept is None or kept == VALUE  # white space may change


def test_results_and_report_are_shown_as_they_were_written_or_not_at_all(tmp_path):
    write_sealed(tmp_path / "results.json", make_results())
    assert read_results(tmp_path / "results.json") == make_results()
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(re.sub(r'("mean": \d)', r"\g<1>9", text, count=1))
    with pytest.raises(InvalidInput, match=r"results\.json was altered"):
        read_results(tmp_path / "results.json")


def test_foreign_json_is_read_as_it_is(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_a_sealed_config_is_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "run.yaml"
    values = build({"target_length": "16k", "train": {"steps": 1}}).model_dump(mode="json")
    write_sealed_yaml(path, values)
    assert build(read_sealed_yaml(path)) == build(values)
    text = path.read_text()
    path.write_text("\n".join(text.splitlines()[:9]) + "\n")
    with pytest.raises(InvalidInput, match="does not end with its seal"):
        read_sealed_yaml(path)
    path.write_text(text.replace("steps: 1", "steps: 0"))
    with pytest.raises(InvalidInput, match="was altered"):
        read_sealed_yaml(path)


def test_a_manifest_that_was_changed_holds_for_nothing(tmp_path):
    (tmp_path / "a").write_text("a")
    finish_stage(tmp_path, {"window": 64})
    manifest = tmp_path / "manifest.json"
    assert stage_holds(tmp_path, {"window": 64})
    manifest.write_text(manifest.read_text().replace("64", "65", 1))
    assert not stage_holds(tmp_path, {"window": 65})


def test_a_changed_adapter_is_not_merged(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    finish_stage(adapter, {"stage": "train"})
    read_adapter(adapter)
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InvalidInput, match="adapter_model.safetensors was altered"):
        read_adapter(adapter)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "rope.json"])
def test_a_changed_model_is_not_opened(tmp_path, name):
    model = merge(make_base(tmp_path / "base"), None, tmp_path / "model")
    inspect(str(model), tmp_path)
    data = bytearray((model / name).read_bytes())
    data[-3] ^= 1
    (model / name).write_bytes(data)
    with pytest.raises(InvalidInput):
        inspect(str(model), tmp_path)


def test_a_changed_outcome_is_read_again(tmp_path):
    subject = Subject("base", tmp_path, "0" * 64, "float32")
    outcome = Outcome(np.array([1.25]), "a", (), (), states=np.ones((1, 2), np.float32))
    OutcomeCache(tmp_path, subject, "nll").put("key", outcome)
    [path] = tmp_path.glob("*.jsonl")
    assert OutcomeCache(tmp_path, subject, "nll").get("key") is not None
    path.write_text(path.read_text().replace("1.25", "1.26"))
    assert OutcomeCache(tmp_path, subject, "nll").get("key") is None
    [states] = (tmp_path / "states").iterdir()
    assert read_states(tmp_path, "key").tolist() == [[1.0, 1.0]]
    data = bytearray(states.read_bytes())
    data[-33] ^= 1  # the last byte of the numbers, before the digest
    states.write_bytes(data)
    with pytest.raises(Exception, match="digest does not fit"):
        read_states(tmp_path, "key")


def test_the_table_of_a_run_is_that_of_its_adapter_in_every_key(tmp_path):
    """A target that differs alone would be written into the merged config."""
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    table = table_for(base).to_json()
    (adapter / "rope.json").write_text(json.dumps({**table, "target_length": 2048}))
    with pytest.raises(InvalidInput, match="was trained with yarn to 2048 tokens"):
        merge(base, adapter, tmp_path / "out")
