"""Every knob once: YAML, overrides, and all problems of a config in one error."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import BaseModel

from giraffe_cli.config.building import apply_overrides, build, differing_keys
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_yaml
from giraffe_cli.errors import InvalidInput


def test_a_target_is_all_a_config_needs():
    config = build({"target_length": "16k"})
    assert (config.model, config.data, config.rope.strategy) == ("calf", ["python-stdlib"], "auto")
    assert (config.target_length, config.window, config.positions) == (16384, 16384, "plain")


def test_a_window_below_the_target_trains_with_pose():
    config = build({"target_length": "16k", "train": {"window": "2k"}})
    assert (config.window, config.positions) == (2048, "pose")
    explicit = build({"target_length": "16k", "train": {"window": "2k", "positions": "plain"}})
    assert explicit.positions == "plain"


def test_every_problem_is_reported_at_once():
    with pytest.raises(InvalidInput) as caught:
        build({"target_lenght": "16k", "train": {"lora": {"rnk": 8}, "steps": -1}}, "bad.yaml")
    message = caught.value.message
    assert message.startswith("bad.yaml: 4 problems\n")
    assert "`target_length` is required" in message
    assert "unknown key `target_lenght`; did you mean `target_length`?" in message
    assert "unknown key `train.lora.rnk`; did you mean `rank`?" in message
    assert "`train.steps`: Input should be greater than or equal to 0" in message


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({}, "pass --target-len 16k, or write target_length into the config"),
        ({"target_length": "1q"}, "write 16k, 1m or a plain integer such as 16384"),
        ({"target_length": "1k", "pack": {"max_doc_bytes": "much"}}, "write 256MB, 1.5GB or "),
        ({"target_length": "1k", "eval": {"gates": ["a<b"]}}, "write nll@16k-nll@8k<0, "),
        ({"target_length": "1k", "sed": 1}, "did you mean `seed`? known: "),
    ],
)
def test_one_problem_says_what_helps(values, hint):
    with pytest.raises(InvalidInput) as caught:
        build(values)
    assert caught.value.hint.startswith(hint)
    assert hint not in caught.value.message


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"target_length": "16kb"}, "`16kb` is not a length in tokens"),
        ({"target_length": "1k", "train": {"window": "2k"}}, "window 2048 is longer than target"),
        ({"target_length": "1k", "train": 3}, "`train`: Input should be a valid"),
        ({"target_length": "1k", "train": {"lora": {"targets": []}}}, "at least 1 item"),
        ({"target_length": "1k", "dtype": "float8"}, "'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_values_out_of_range_name_what_was_found(values, found):
    with pytest.raises(InvalidInput) as caught:
        build(values)
    assert found in caught.value.message


def test_overrides_are_yaml_and_leave_the_original_alone():
    values = {"train": {"steps": 5, "lora": {"rank": 4}}}
    merged = apply_overrides(
        values, ["train.lora.rank=8", "rope.knobs.beta_fast=16", "data=[a, b]", "train.window=2k"]
    )
    assert values == {"train": {"steps": 5, "lora": {"rank": 4}}}
    assert merged["train"] == {"steps": 5, "lora": {"rank": 8}, "window": "2k"}
    assert merged["rope"] == {"knobs": {"beta_fast": 16}}
    assert merged["data"] == ["a", "b"]


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("train.steps", "no `key=value`"),
        ("=3", "no `key=value`"),
        ("model.size=3", "`model.size`: `model` holds no section"),
        ("data=[a", "not YAML"),
    ],
)
def test_an_override_that_cannot_be_read_is_named(assignment, found):
    with pytest.raises(InvalidInput) as caught:
        apply_overrides({"model": "calf"}, [assignment])
    assert assignment.split("=")[0] in caught.value.message
    assert found in caught.value.message


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"method": "full", "quantize_base": "nf4"}, "trains every weight, quantize_base freezes"),
        ({"method": "full", "lora": {"rank": 8}}, "full has no adapter, lora has no effect"),
        ({"checkpointing": "none", "mlp_tile": 64}, "mlp_tile needs checkpointing"),
        ({"checkpointing": "none", "projection_tile": 64}, "projection_tile needs checkpointing"),
        ({"checkpointing": "none", "offload_layers": 2}, "offload_layers needs checkpointing"),
        ({"head_groups": 2}, "head_groups needs projection_tile"),
        ({"checkpointing": "none", "whole_layers": 2}, "whole_layers needs checkpointing"),
        ({"shard_base": "full", "whole_layers": 2}, "shard_base: full keeps no layer whole"),
        (
            {"head_groups": 2, "projection_tile": 64, "sequence_parallel": 2},
            "head_groups divides the heads of one process",
        ),
        (
            {"schedule": "wsd", "steps": 60, "decay_steps": 500},
            "decay_steps 500 is more than the 60 steps there are",
        ),
        ({"lora": {"use_dora": True, "init_lora_weights": "pissa"}}, "pissa exclude each other"),
        ({"lora": {"also_train": ["head"]}}, "also_train"),
    ],
)
def test_kinds_of_training_that_exclude_each_other_are_refused(train, words):
    with pytest.raises(InvalidInput, match=words):
        build({"target_length": "16k", "train": train})


def test_a_stage_shorter_than_the_decay_is_refused():
    """It began in the middle of the decay: 8e-5 of a peak of 2e-4."""
    train = {"steps": 20, "schedule": "wsd", "decay_steps": 10}
    stages = [{"target_length": 256, "steps": 4}, {"target_length": 512, "steps": 20}]
    with pytest.raises(InvalidInput, match=r"stages.0: train.decay_steps 10 is more than the 4"):
        build({"train": train, "stages": stages})
    stages[0]["schedule"] = "cosine"
    assert build({"train": train, "stages": stages}).stage_configs()[0].train.decay_steps is None


@pytest.mark.parametrize("text", ["2e-4", "0.0002", "2.0e-4"])
def test_a_learning_rate_may_be_written_as_people_write_it(text):
    values = apply_overrides({"target_length": 64}, [f"train.learning_rate={text}"])
    assert build(values).train.learning_rate == 2e-4


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_a_switch_may_be_written_as_its_hint_says(word):
    given = apply_overrides({"target_length": "16k"}, [f"train.fused_layers={word}"])
    assert build(given).train.fused_layers == word


def test_a_resolved_config_builds_itself_again():
    config = build({"target_length": "16k", "train": {"window": "2k"}, "eval": {"lengths": ["1k"]}})
    assert build(config.model_dump(mode="json")) == config


def test_differing_keys_are_dotted():
    old = build({"target_length": "16k"}).model_dump(mode="json")
    new = build({"target_length": "8k", "train": {"lora": {"rank": 8}}}).model_dump(mode="json")
    assert differing_keys(old, new) == ["target_length", "train.lora.rank"]
    assert differing_keys(old, old) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"a: [1", "not valid YAML"), (b"- 1\n", "no mapping"), (b"a: \xff\n", "not valid YAML")],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, found):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=str(path)) as caught:
        read_yaml(path)
    assert found in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    inner = [
        candidate
        for field in kind.model_fields.values()
        for candidate in (field.annotation, *get_args(field.annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    ]
    return [kind, *(found for section in inner for found in sections(section))]


def test_every_knob_says_what_it_is():
    kinds = sections(ExtendConfig)
    assert {kind.__name__ for kind in kinds} >= {"ExtendConfig", "TrainConfig", "LoraConfig"}
    silent = [
        f"{kind.__name__}.{name}"
        for kind in kinds
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert silent == []
    assert ExtendConfig.model_json_schema()["properties"]["target_length"]["description"]
