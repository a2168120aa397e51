"""What each runtime reads and does: against transformers itself, and sentence by sentence."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from giraffe_cli.rope.readings import (
    claimed_table,
    describe,
    differences,
    read_as_transformers_4,
    read_as_transformers_5,
)
from giraffe_cli.rope.runtimes import portability, runtimes

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
}
TYPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 128},
    "yarn, all knobs": {
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    "llama3": {
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "longrope": {
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        "original_max_position_embeddings": 128,
    },
}


def config_of(name: str, **changes) -> dict:
    fields = {"rope_type": name.partition(",")[0], "rope_theta": 50000.0, **TYPES[name]}
    return {**SHAPE, "rope_parameters": fields, **changes}


@pytest.mark.parametrize("name", TYPES)
def test_the_claimed_table_is_the_one_transformers_computes(name):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = config_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rotary = LlamaRotaryEmbedding(LlamaConfig(**config))
    rotary(torch.zeros(1, 1, 16), torch.tensor([[1023]]))  # longrope takes its long factors here
    inv_freq, attention_factor = claimed_table(config)
    torch.testing.assert_close(
        rotary.inv_freq.double(), torch.from_numpy(inv_freq), rtol=5e-7, atol=0
    )
    assert attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_named_end_points_of_yarn():
    """Fastest pair kept, slowest divided by the factor; 0.1 ln 8 + 1."""
    inv_freq, attention_factor = claimed_table(config_of("yarn"))
    assert inv_freq[0] == 1.0
    assert inv_freq[-1] == pytest.approx(50000.0 ** -(14 / 16) / 8)
    assert attention_factor == pytest.approx(0.1 * math.log(8) + 1)


def test_a_table_that_moves_has_no_claim():
    config = {**SHAPE, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    assert claimed_table(config) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "rope_parameters": {"rope_type": "yarn", "factor": 9.0, "rope_theta": 1.0},
        },
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}},
        {
            "original_max_position_embeddings": 128,
            "rope_scaling": {"rope_type": "yarn", "factor": 8.0},
        },
        {},
    ],
)
def test_reading_as_transformers_5_is_what_transformers_5_does(keys):
    from transformers import LlamaConfig

    read = LlamaConfig(**SHAPE, **keys).rope_parameters
    found = read_as_transformers_5({**SHAPE, **keys})
    assert found == {key: value for key, value in read.items() if key != "type"}


def test_transformers_4_looks_at_the_old_keys_only():
    assert read_as_transformers_4(config_of("yarn")) == {
        "rope_type": "default",
        "rope_theta": 10000.0,
    }


def test_transformers_4_reads_type_before_rope_type():
    """Run with 4.57: the two generations build different tables from the same file."""
    config = {**SHAPE, "rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}}
    assert read_as_transformers_4(config)["rope_type"] == "linear"
    assert read_as_transformers_5(config)["rope_type"] == "dynamic"


def test_differences_name_the_first_number_of_a_list():
    assert differences({"a": [1.0, 2.0], "b": 1}, {"a": [1.0, 3.0], "b": 1}) == [
        "a[1]: 2.0 against 3.0"
    ]
    assert differences({"a": [1.0]}, {}) == ["a: 1 numbers against absent"]


def test_a_reading_in_a_few_words():
    reading = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}
    assert describe(reading) == "linear ×4, θ 500000"
    assert describe({**reading, "original_max_position_embeddings": 8}) == (
        "linear ×4 over 8, θ 500000"
    )
    assert describe({**reading, "factor": None}) == "linear, θ 500000"
    assert describe({**reading, "factor": "4"}) == "linear ×4, θ 500000"
    plain = {"rope_type": "default", "original_max_position_embeddings": 8, "rope_theta": 1e4}
    assert describe(plain) == "default, θ 10000"


def said(config: dict, limit: int | None = None) -> dict[str, str]:
    return runtimes(config, limit)


def test_a_file_of_transformers_5_only_loses_theta_and_scaling_in_4():
    assert said(config_of("yarn"))["transformers-v4"] == (
        "loses theta and scaling: reads default, θ 10000 where transformers 5 reads "
        "yarn ×8 over 128, θ 50000"
    )
    assert said(config_of("default"))["transformers-v4"].startswith("loses theta: ")


V4_ROUNDED = {
    "rope_theta": 50000.0,
    "rope_scaling": {"rope_type": "yarn", **TYPES["yarn"], "truncate": False},
}


def even_longrope(**changes) -> dict:
    """longrope that does not switch, complete, in both spellings."""
    fields = {**TYPES["longrope"], "short_factor": TYPES["longrope"]["long_factor"]}
    fields |= {"attention_factor": 1.2, "short_mscale": 1.2, "long_mscale": 1.2, **changes}
    return twice({"rope_type": "longrope", **fields})


def twice(fields: dict) -> dict:
    """`config.json` with `fields` in both spellings, θ 50000."""
    parameters = {**fields, "rope_theta": 50000.0}
    return {**SHAPE, "rope_theta": 5e4, "rope_scaling": fields, "rope_parameters": parameters}


@pytest.mark.parametrize(
    ("config", "runtime", "sentence"),
    [
        (config_of("linear"), "vllm", "serves 4096 tokens with linear as written"),
        (
            twice({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 256}),
            "vllm",
            "multiplies the length: serves 4096 tokens unless --max-model-len 1024",
        ),
        (
            config_of("longrope"),
            "vllm",
            "serves 1024 tokens but ignores attention_factor: no short_mscale/long_mscale",
        ),
        (config_of("yarn"), "vllm", "serves 1024 tokens with yarn as written"),
        (
            config_of("yarn, all knobs"),
            "vllm",
            "serves 1024 tokens with yarn as written from 0.33 on; older ones have attention "
            "factor 1.20794 instead of 1.09418",
        ),
        (
            twice({"rope_type": "yarn", **TYPES["yarn"], "attn_factor": 0.5}),
            "vllm",
            "serves 1024 tokens with yarn as written from 0.33 on; older ones have attention "
            "factor 0.603972 instead of 1.20794",
        ),
        (
            twice({"rope_type": "dynamic", "factor": 4.0}),
            "vllm",
            "serves 4096 tokens with dynamic as written; turns every text by the table of 4096 "
            "tokens, where transformers leaves one of up to 1024 unscaled",
        ),
        (
            {**SHAPE, "rope_scaling": {"type": "su", "factor": 4.0}},
            "vllm",
            "reads rope_type su as longrope, with a warning",
        ),
        (
            {**SHAPE, "rope_scaling": {"type": "su", "factor": 4.0}},
            "transformers",
            "refuses rope_type su",
        ),
        (
            {**SHAPE, "rope_parameters": {"rope_type": "axial", "rope_theta": 1e4}},
            "vllm",
            "refuses rope_type axial",
        ),
        (config_of("default"), "llama.cpp", "stock converter writes default exactly"),
        (config_of("llama3"), "llama.cpp", "stock converter writes llama3 exactly"),
        (config_of("yarn"), "llama.cpp", "stock converter writes yarn exactly"),
        (
            config_of("yarn, all knobs"),
            "llama.cpp",
            "applies the stock converter's yarn with attention factor 1.20794 instead of 1.09418; "
            "giraffe export --to gguf writes it exactly",
        ),
        (
            config_of("longrope"),
            "llama.cpp",
            "stock converter drops longrope: RoPE runs unscaled",
        ),
        (
            config_of("yarn, all knobs", rope_parameters=None, **V4_ROUNDED),
            "llama.cpp",
            "applies the stock converter's yarn with the ramp's ends rounded, which truncate "
            "forbids; giraffe export --to gguf writes it exactly",
        ),
        (
            even_longrope(),
            "llama.cpp",
            "stock converter drops the longrope factors of a Llama: RoPE runs unscaled; "
            "giraffe export --to gguf writes them exactly",
        ),
        (
            {**SHAPE, "rope_scaling": TYPES["longrope"] | {"rope_type": "longrope"}},
            "transformers-v4",
            "refuses longrope without factor or attention_factor",
        ),
        (
            SHAPE,
            "transformers",
            "reads default, θ 10000 (its default: no key in force names it), window 1024",
        ),
        (
            {**SHAPE, "rope_scaling": {"rope_type": "yarn", "factor": "8"}},
            "vllm",
            "not to be relied on: factor is '8', needs a number of at least 1",
        ),
        (
            {**SHAPE, "rope_parameters": {"rope_type": "proportional", "factor": 2.0}},
            "transformers",
            "reads rope_type proportional, which not every runtime computes",
        ),
        (
            {**SHAPE, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "llama.cpp",
            "stock converter drops dynamic: RoPE runs unscaled",
        ),
        (
            config_of("longrope"),
            "transformers",
            "reads longrope over 128, θ 50000; the table changes with the length, which breaks "
            "caches",
        ),
        (
            config_of("yarn", max_position_embeddings=1024.5),
            "transformers",
            "refuses max_position_embeddings 1024.5: not an integer",
        ),
    ],
)
def test_sentences(config, runtime, sentence):
    assert said(config)[runtime] == sentence


def test_the_tokenizer_caps_vllm():
    assert said(config_of("yarn"), 256)["vllm"] == "serves 256 tokens with yarn as written"
    longrope = config_of("longrope", original_max_position_embeddings=128)
    longrope["rope_parameters"] |= {"short_mscale": 1.0, "long_mscale": 1.0}
    assert said(longrope)["vllm"] == "serves 128 tokens with longrope as written"


EXACT = dict.fromkeys(("transformers", "transformers-v4", "vllm", "llama.cpp"), "exact")
THROUGH_EXPORT = "exact through giraffe export"


@pytest.mark.parametrize(
    ("config", "otherwise"),
    [
        (twice({"rope_type": "default"}), {}),
        (twice({"rope_type": "llama3", **TYPES["llama3"]}), {}),
        (twice({"rope_type": "yarn", **TYPES["yarn"]}), {}),
        (
            twice({"rope_type": "linear", "factor": 4.0, "original_max_position_embeddings": 256}),
            {"vllm": "exact with --max-model-len 1024"},
        ),
        (
            twice({"rope_type": "yarn", **TYPES["yarn, all knobs"]}),
            {
                "vllm": "exact from vLLM 0.33 on",
                "llama.cpp": f"attention factor recomputed by the runtime; {THROUGH_EXPORT}",
            },
        ),
        (
            twice({"rope_type": "yarn", **TYPES["yarn"], "attn_factor": 0.5}),
            {"vllm": "exact from vLLM 0.33 on"},
        ),
        (twice({"rope_type": "yarn", **TYPES["yarn"], "attn_factor": "x"}), {}),
        (
            {**SHAPE, **V4_ROUNDED},
            {"llama.cpp": f"ramp ends rounded by the runtime; {THROUGH_EXPORT}"},
        ),
        (
            even_longrope(),
            {"llama.cpp": f"factors dropped by the stock converter; {THROUGH_EXPORT}"},
        ),
        (
            even_longrope(long_mscale=None),
            {
                "vllm": "ignores attention_factor",
                "llama.cpp": f"factors dropped by the stock converter; {THROUGH_EXPORT}",
            },
        ),
        (config_of("default"), {"transformers-v4": "loses theta"}),
        (config_of("yarn"), {"transformers-v4": "loses theta and scaling"}),
        (
            twice({"rope_type": "dynamic", "factor": 4.0}),
            {
                "transformers": "the table changes with the length",
                "vllm": "one table for all lengths",
                "llama.cpp": "unscaled",
            },
        ),
    ],
)
def test_portability_in_a_few_words(config, otherwise):
    """Exact everywhere, but for what is said."""
    assert portability(config) == {**EXACT, **otherwise}


def test_portability_needs_no_sizes():
    config = even_longrope()
    sizes = ("hidden_size", "num_attention_heads")
    assert portability({k: v for k, v in config.items() if k not in sizes}) == portability(config)
