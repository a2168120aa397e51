"""Shared fixtures: a tiny random Llama with a real tokenizer, a small corpus, and the real CLI."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# One thread: some tests fork, and a child of a process that has used OpenMP threads crashes.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1", COLUMNS="160")

TINY_WINDOW = 128
WORDS = "the grass is green and sky blue sun yellow we go there back again a giraffe eats".split()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` is skipped where there is none, however it was asked for."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def prose(index: int, sentences: int) -> str:
    """Deterministic text: document `index`, about seven tokens a sentence."""
    lines = []
    for n in range(sentences):
        picked = [WORDS[(index * 7 + n * 3 + k * k) % len(WORDS)] for k in range(5)]
        lines.append(" ".join(picked).capitalize() + f" {index * 100 + n}.")
    return " ".join(lines)


def load_script(name: str) -> ModuleType:
    """`scripts/NAME.py` as a module, its neighbours importable for as long as it loads."""
    scripts = str(Path(__file__).parent.parent / "scripts")
    sys.path.insert(0, scripts)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(scripts)


def build_tokenizer(folder: Path, vocab_size: int = 384) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prose(i, 40) for i in range(20)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=TINY_WINDOW,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def build_tiny_llama(folder: Path, **changes) -> Path:
    """A random float32 Llama directory: 2 layers, 64 wide, 4 heads (2 kv) of 16, window 128."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    build_tokenizer(folder)
    torch.manual_seed(0)
    settings = {
        "vocab_size": 384,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": TINY_WINDOW,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory):
    """Five layers, and a head of its own."""
    folder = tmp_path_factory.mktemp("untied")
    return build_tiny_llama(folder, tie_word_embeddings=False, num_hidden_layers=5)


@pytest.fixture(scope="session", autouse=True)
def shipped_probe() -> Iterator[Any]:
    """The proof's probe is asked in this process: another needs five to ten seconds for its
    imports, a quarter of all tests' time. This is the one that a user gets."""
    from giraffe_cli import verify

    def ask(request: dict) -> dict:
        from tiny_runs import ask_here

        return ask_here(request)

    shipped = verify.ask_probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "ask_probe", ask)
        yield shipped


@pytest.fixture
def probed_apart(shipped_probe, monkeypatch) -> None:
    """The proof's probe in a process of its own."""
    monkeypatch.setattr("giraffe_cli.verify.ask_probe", shipped_probe)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    """24 JSONL documents: half of about 2,000 tokens, half of about 100."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    documents = [{"id": f"doc-{i}", "text": prose(i, 160 if i % 2 else 8)} for i in range(24)]
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), encoding="utf-8")
    return path


@dataclass
class CliResult:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def giraffe(capsys, monkeypatch):
    """Run the real command line in this process: `giraffe("rope", "list").code`."""

    def run(*args: object) -> CliResult:
        from giraffe_cli.cli.app import main

        monkeypatch.setattr(sys, "argv", ["giraffe", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        captured = capsys.readouterr()
        return CliResult(code, captured.out, captured.err)

    return run
