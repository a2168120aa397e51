"""Exported files in llama.cpp itself, against transformers: run with `-m llamacpp`.

calf (native window 1,024) is taken to 4k by every strategy; the 512 positions that follow the
native window are compared. The limits: equal top tokens at 99 % of the positions where
transformers' two best logits are more than 0.05 apart, NLL within 0.01 nats. Measured: 100 % and
1e-4. Two seconds a strategy.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conftest import load_script, prose
from test_export_tokenizer import sentencepiece_like

from giraffe_cli.checkpoint import inspect
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.rope.base import make_table, strategies

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.skipif(
        importlib.util.find_spec("llama_cpp") is None, reason="pip install llama-cpp-python"
    ),
]
ROOT = Path(__file__).parent.parent
TARGET = 4096


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/compare_llamacpp.py`, which prints the same figures as JSON."""
    return load_script("compare_llamacpp")


@pytest.fixture(scope="module")
def calf():
    return inspect("calf", ROOT)


@pytest.fixture(scope="module")
def text(script, calf):
    return script.passage(calf, 512)


def holds(found: dict) -> bool:
    near = abs(found["nll_llamacpp"] - found["nll_transformers"]) <= 0.01
    return near and found["top1_agreement"] >= 0.99


@pytest.mark.parametrize("name", sorted(strategies()))
def test_llamacpp_runs_the_table_of_every_strategy(script, calf, text, name):
    head = calf.head(TARGET)
    table = make_table(name, strategies()[name].example(head), head)
    found = script.compare(calf, table, text, "f16", control=True)
    assert found["clear_positions"] > 450, found
    assert found["tokens_equal"], found
    assert holds(found), found
    if found["rope_freqs"]:
        assert not holds(found["control"]), found["control"]


def tokens_agree(script, folder: Path, scratch: Path, samples: tuple[str, ...]) -> None:
    script.to_gguf(folder, scratch / "x.gguf", "f16")
    runtime, tokenizer = script.LlamaCpp(scratch / "x.gguf", 64), load_tokenizer(folder)
    try:
        for sample in samples:
            assert runtime.tokenize(sample) == tokenizer(sample).input_ids, sample
    finally:
        runtime.close()


def test_llamacpp_makes_the_same_tokens_of_a_byte_level_tokenizer(script, tmp_path, tiny_llama):
    samples = (prose(3, 20), "  two  spaces\n\n\tand 1234567890's", "größer 🦒 日本語")
    tokens_agree(script, tiny_llama, tmp_path, samples)


def test_llamacpp_makes_the_same_tokens_of_a_sentencepiece_like_tokenizer(script, tmp_path):
    samples = ("ab", "abc ab  abc", "     abcd", "a b    c", "bcab é\n", " abab bcbc")
    tokens_agree(script, sentencepiece_like(tmp_path / "m"), tmp_path, samples)


def test_a_quantised_file_loads_and_nearly_agrees(script, calf, text):
    """q8_0 rounds blocks of 32 weights to 8 bits: 99.4 % of calf's clear top tokens stay."""
    head = calf.head(TARGET)
    found = script.compare(calf, make_table("yarn", {}, head), text, "q8_0", control=False)
    assert found["top1_agreement"] > 0.98
    assert abs(found["nll_llamacpp"] - found["nll_transformers"]) < 0.01


def test_a_passkey_is_answered_with_the_same_digits(tmp_path, calf):
    compare = load_script("compare_passkey")
    prompts = compare.passkeys(calf.path, 1024, 3, 0)
    facts = compare.to_gguf(calf.path, tmp_path / "calf.gguf", "f16")
    there = compare.in_llama_cpp(Path(facts["path"]), prompts, load_tokenizer(calf.path))
    here = compare.in_transformers(calf.path, prompts)
    digits = [compare._digits(answer["text"]) for answer in here]
    assert [compare._digits(text) for text, _, _ in there] == digits
    assert all(same_tokens for _, _, same_tokens in there)
    assert any(digits)
