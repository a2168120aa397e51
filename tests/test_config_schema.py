"""The published schema of a config: it takes what giraffe takes, and what it takes ends in a config
or in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import load_script
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.files import read_sealed_yaml, read_yaml, write_sealed_yaml
from giraffe_cli.errors import GiraffeError
from giraffe_cli.units import parse_bytes, parse_length

CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))
SCHEMA = ExtendConfig.model_json_schema()
schemas = load_script("campaign.schemas")
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` fits, by the words of JSON schema that a config's uses."""
    if "$ref" in schema:
        return fits(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return any(fits(value, part) for part in schema["anyOf"])
    kind = schema.get("type")
    if kind and not isinstance(value, TYPES[kind]):
        return False
    if isinstance(value, bool) and kind in ("integer", "number"):
        return False
    if isinstance(value, dict):
        parts, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= set(value) and all(
            fits(part, parts[name]) if name in parts else others and fits(part, dict(others or {}))
            for name, part in value.items()
            if name in parts or others is not True
        )
    if isinstance(value, list):
        inner = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(fits(part, inner) for part in value)
    if isinstance(value, str) and "pattern" in schema:
        return re.search(schema["pattern"], value) is not None
    return value in schema.get("enum", [schema.get("const", value)]) and _in_bounds(value, schema)


def _in_bounds(value: Any, schema: dict[str, Any]) -> bool:
    if isinstance(value, str | None):
        return True
    return bool(
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_fits(path):
    assert fits(read_yaml(path), SCHEMA)


@pytest.mark.parametrize(
    "value",
    [
        {"target_length": "16 k"},
        {"target_length": 0},
        {"stages": ["x"]},
        {"seed": "1"},
        {"train": {"lora": {"rank": 0}}},
        {"pack": {"rule": "two"}},
        {"pack": {"max_doc_bytes": "1 XB"}},
        {"unknown": 1},
    ],
)
def test_what_is_none_does_not_fit(value):
    assert not fits(value, SCHEMA)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(schemas.fitting(SCHEMA))
def test_what_is_drawn_fits(value):
    assert fits(value, SCHEMA)


@settings(max_examples=100)
@given(st.from_regex(r"[0-9]{1,19}(\.[0-9]{1,19})? ?[kmKMgt]?[bB]?\s?", fullmatch=True))
def test_lengths_and_sizes_fit_as_they_are_read(text):
    for parse, schema in (
        (parse_length, SCHEMA["properties"]["target_length"]),
        (parse_bytes, SCHEMA["$defs"]["PackConfig"]["properties"]["max_doc_bytes"]),
    ):
        number = float(re.match(r"[0-9.]+", text)[0])
        try:
            read = parse(text)
        except GiraffeError:
            # a pattern knows neither a unit's worth nor that nothing is left of a fraction
            assert not fits(text, schema) or number < 1 or number >= 1e5
        else:
            assert fits(text, schema)
            assert parse(str(read)) == read


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_length, "1000000000000000K"),
        (parse_length, "1000000000000M"),
        (parse_bytes, "1000000 TB"),
        (parse_bytes, "1000000000000000k"),
    ],
)
def test_what_its_unit_makes_too_large_to_be_read_again_is_refused(parse, text):
    """A config of `1000000000000000K` was taken, and its run could not be resumed."""
    with pytest.raises(GiraffeError, match="is not a"):
        parse(text)


def test_the_largest_sizes_are_whole_numbers():
    assert parse_bytes(999999999999999999) == 999999999999999999
    assert parse_bytes("999999TB") == 999999 * 10**12


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(value=schemas.changed({**SCHEMA, "required": ["target_length"]}))
def test_a_config_is_refused_in_words_or_kept_as_it_is(value, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    told, config = "", None
    try:
        config = build(read_yaml(path))
    except GiraffeError as error:
        told = error.message
    if config is None:
        assert 5 < len(told) < 20_000
    else:
        write_sealed_yaml(tmp_path / "run.yaml", config.model_dump(mode="json"))
        assert build(read_sealed_yaml(tmp_path / "run.yaml")) == config


@pytest.mark.parametrize(
    "text",
    [
        "eval: {knobs: {nll: {anchors: .inf}}}",
        "train: {learning_rate: inf}",
        "train: {lora: {alpha: .nan}}",
        "rope: {strategy: ntk, knobs: {base: -.inf}}",
    ],
)
def test_numbers_without_end_are_refused(text, tmp_path):
    """JSON has no such number: written into a run's own config, one came back as none."""
    path = tmp_path / "config.yaml"
    path.write_text(f"target_length: 16k\n{text}\n", encoding="utf-8")
    with pytest.raises(GiraffeError, match="finite"):
        build(read_yaml(path))


def test_a_value_of_several_types_is_one_problem():
    with pytest.raises(GiraffeError) as caught:
        build({"target_length": "16k", "train": {"mlp_tile": "x"}})
    assert caught.value.message == (
        "config: `train.mlp_tile`: Input should be 'auto' or 'none', or `x` is not a length in "
        "tokens"
    )
    assert caught.value.hint == "write 16k, 1m or a plain integer such as 16384"


def test_what_is_named_is_named_briefly():
    knobs = {"9" * 5000: {"a": 1}}
    with pytest.raises(GiraffeError) as caught:
        build({"target_length": "1" * 5000, "rope": {"strategy": "yarn", "knobs": knobs}})
    assert "`rope.knobs.9999" in caught.value.message
    assert len(caught.value.message) < 1000
