"""Healthy configs, those of published models word for word where it concerns RoPE, and the window
that a θ reaches by itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_misscaled import failures

from giraffe_cli.rope.readings import served_length
from giraffe_cli.rope.runtimes import portability
from giraffe_cli.rundir import write_json
from giraffe_cli.verify_config import check_config
from giraffe_cli.verify_scaling import check_scaling, reachable_length

SHAPES = {
    "7B": {"hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 32000},
    "Llama 3": {"hidden_size": 4096, "num_attention_heads": 32, "vocab_size": 128256},
    "SmolLM2": {"hidden_size": 576, "num_attention_heads": 9, "vocab_size": 49152},
}
LLAMA_3_1 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}


def published(shape: str, window: int, **fields: Any) -> dict[str, Any]:
    sizes = {"intermediate_size": 11008, "num_hidden_layers": 32, **SHAPES[shape]}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return {**kind, **sizes, "max_position_embeddings": window, **fields}


HEALTHY: dict[str, tuple[dict[str, Any], float | None]] = {
    "Llama 1": (published("7B", 2048), 1e30),
    "Llama 2": (published("7B", 4096, rope_scaling=None), 1e30),
    "Llama 2 with theta": (published("7B", 4096, rope_theta=10000.0, rope_scaling=None), None),
    "8k at the first theta": (published("7B", 8192, rope_theta=10000.0), 8192),
    "Llama 3": (published("Llama 3", 8192, rope_theta=500000.0, rope_scaling=None), 1e30),
    "Llama 3.1, v4": (published("Llama 3", 131072, rope_theta=5e5, rope_scaling=LLAMA_3_1), 131072),
    "Llama 3.1, both": (
        published(
            "Llama 3",
            131072,
            rope_theta=5e5,
            rope_scaling=LLAMA_3_1,
            rope_parameters={**LLAMA_3_1, "rope_theta": 5e5},
        ),
        131072,
    ),
    "Llama 3.2": (
        published("Llama 3", 131072, rope_theta=5e5, rope_scaling={**LLAMA_3_1, "factor": 32.0}),
        131072,
    ),
    "CodeLlama": (published("7B", 16384, rope_theta=1000000, rope_scaling=None), 1e30),
    "SmolLM2": (published("SmolLM2", 8192, rope_theta=100000, rope_scaling=None), 8192),
    "ProLong 64k": (published("Llama 3", 65536, rope_theta=8e6), 65536),
    "ProLong 512k": (published("Llama 3", 524288, rope_theta=1.28e8), 524288),
    "Gradient 64k": (published("Llama 3", 65536, rope_theta=15300000.0), 1e30),
    "Gradient 1048k": (published("Llama 3", 1048576, rope_theta=2804339835.0), 1e30),
    "LWM 1M": (published("7B", 1048576, rope_theta=5e7), 1e30),
    "Vicuna 16k": (published("7B", 4096, rope_scaling={"factor": 4.0, "type": "linear"}), 16384),
    "DeepSeek Coder": (
        published("7B", 16384, rope_theta=100000, rope_scaling={"factor": 4.0, "type": "linear"}),
        16384,
    ),
    "dynamic": (published("7B", 4096, rope_scaling={"type": "dynamic", "factor": 4.0}), 16384),
    "YaRN 64k, v4": (published("7B", 65536, rope_theta=10000.0, rope_scaling=YARN), 65536),
    "YaRN 64k, finetuned key": (
        published("7B", 65536, rope_theta=1e4, rope_scaling={**YARN, "finetuned": True}),
        1e30,
    ),
}
NEW_SPELLING_ONLY = {
    "Llama 3.1, v5": published("Llama 3", 131072, rope_parameters={**LLAMA_3_1, "rope_theta": 5e5}),
    "SmolLM2, v5": published(
        "SmolLM2", 8192, rope_parameters={"rope_type": "default", "rope_theta": 1e5}
    ),
}


def config_failures(folder: Path, config: dict[str, Any], limit: float | None) -> dict[str, str]:
    """The checks of config and tokenizer alone: weights of this size are not built here."""
    write_json(folder / "config.json", config)
    if limit is not None:
        write_json(folder / "tokenizer_config.json", {"model_max_length": int(limit)})
    checks = check_config(folder, config, None) | check_scaling(folder, config, None)
    return failures({"checks": checks})


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_config_passes(tmp_path, name):
    config, limit = HEALTHY[name]
    assert config_failures(tmp_path, config, limit) == {}
    assert "malformed" not in portability(config).values()


def test_a_factor_multiplies_the_window_where_that_is_the_native_one():
    """Beside a shorter original length the window is the extended one already."""
    config = {"max_position_embeddings": 4096}
    for kind, original, served in (
        ("linear", {}, 16384),
        ("dynamic", {}, 16384),
        ("linear", {"original_max_position_embeddings": 1024}, 4096),
        ("yarn", {}, 16384),
        ("yarn", {"original_max_position_embeddings": 4096}, 16384),  # as on Qwen's cards
        ("yarn", {"original_max_position_embeddings": 1024}, 4096),
    ):
        assert served_length(config, {"rope_type": kind, "factor": 4.0, **original}) == served


@pytest.mark.parametrize("name", NEW_SPELLING_ONLY)
def test_the_new_spelling_alone_fails_for_transformers_4_and_nothing_else(tmp_path, name):
    found = config_failures(tmp_path, NEW_SPELLING_ONLY[name], None)
    assert set(found) == {"rope_spellings"}
    assert "rope_theta: 10000.0 against" in found["rope_spellings"]


def test_a_llama_3_vocabulary_without_theta_lost_it(tmp_path):
    found = config_failures(tmp_path, published("Llama 3", 8192), None)
    assert set(found) == {"rope_theta"}
    assert "a vocabulary of 128256 is Llama 3's" in found["rope_theta"]


# ── the window θ reaches ─────────────────────────────────────────────────────────────────────


def test_reach_at_named_thetas():
    """Llama 2 by construction; 2π·(4096/2π)^1.5 by hand; Liu et al.'s rule gives 64k for 5·10⁵."""
    assert reachable_length(1e4) == pytest.approx(4096)
    assert reachable_length(1e6) == pytest.approx(4096 * math.sqrt(4096 / (2 * math.pi)))
    assert reachable_length(5e5) == pytest.approx(64_200, rel=1e-3)


@pytest.mark.parametrize("head_dim", [16, 128])
def test_the_pair_that_turns_once_is_the_same_one(head_dim):
    """Independently: at L(θ) the pair with one turn has the index it has in Llama 2 at 4096."""
    last_trained = head_dim / 2 * math.log(4096 / (2 * math.pi)) / math.log(1e4)
    for theta in (1e5, 5e5, 1e8):
        slowest = theta ** (-2 * last_trained / head_dim)
        assert reachable_length(theta) == pytest.approx(2 * math.pi / slowest)


@pytest.mark.parametrize(
    ("theta", "window", "passes"),
    [
        (1e4, 8192, True),
        (1e4, 8193, False),
        (1e4, 16384, False),
        (5e5, 8192, True),
        (5e5, 65536, True),
        (5e5, 131072, False),
        (1e6, 16384, True),
        (8e6, 65536, True),
        (15.3e6, 65536, True),
        (5e7, 1048576, True),
        (2.8e9, 1048576, True),
    ],
)
def test_windows_within_and_beyond_reach(tmp_path, theta, window, passes):
    config = published("7B", window, rope_theta=theta)
    assert ("scaling" not in config_failures(tmp_path, config, None)) == passes
