"""Which of llama.cpp's tokenizers does what a `tokenizer.json` says, or a refusal that names it.

The steps that the tokenizer runs are compared, as a whole, with those that llama.cpp's names stand
for (`gguf_pipelines.py`); anything else is an error, never the nearest name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.gguf_pipelines import NAMES, SPACE


def byte_level_pre(value: Mapping[str, Any]) -> str:
    """`tokenizer.ggml.pre` for a byte-level BPE `tokenizer.json`.

    Raises:
        InvalidInput: steps that no name of llama.cpp is known here to stand for.
    """
    model = value["model"]
    if not only_composes(value):
        raise _unknown("normalizer", value["normalizer"])
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(affix):
            raise _unknown(affix, model[affix])
    steps = tuple(_describe(step) for step in _steps(value.get("pre_tokenizer")))
    ignores_merges = bool(model.get("ignore_merges"))
    if (steps, ignores_merges) not in NAMES:
        raise _unknown("pre_tokenizer", value.get("pre_tokenizer"))
    return NAMES[steps, ignores_merges][0]


def only_composes(value: Mapping[str, Any]) -> bool:
    """True without a normalizer, and with Unicode's NFC, which most text is in already."""
    return all(step["type"] == "NFC" for step in _steps(value.get("normalizer"), "normalizers"))


def is_byte_level(value: Mapping[str, Any]) -> bool:
    """True when a ByteLevel step turns text into bytes before the merges."""
    return any(step["type"] == "ByteLevel" for step in _steps(value.get("pre_tokenizer")))


def adds_space_prefix(value: Mapping[str, Any]) -> bool:
    """Whether a sentencepiece-like tokenizer puts a space before the text.

    Three spellings mean the same to llama.cpp's `llama` tokenizer: a normalizer that replaces
    spaces, with or without one that prepends, and a Metaspace step that does not split.

    Raises:
        InvalidInput: other normalizers or steps.
    """
    normalizers = _steps(value.get("normalizer"), "normalizers")
    steps = _steps(value.get("pre_tokenizer"))
    replaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepends = {"type": "Prepend", "prepend": SPACE}
    if not steps and normalizers == [prepends, replaces]:
        return True
    if not steps and normalizers == [replaces]:
        return False
    if not normalizers and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        step = steps[0]
        if step.get("replacement") == SPACE and step.get("split") is False:
            return bool(step.get("prepend_scheme") != "never")
    raise _unknown(
        "normalizer and pre_tokenizer", [value.get("normalizer"), value.get("pre_tokenizer")]
    )


def _steps(node: Any, inner: str = "pretokenizers") -> list[dict[str, Any]]:
    """A single step or a Sequence as a flat list."""
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for child in node[inner] for step in _steps(child, inner)]
    return [dict(node)]


def _describe(step: Mapping[str, Any]) -> str:
    """`digits`, `bytes`, `gpt2`, the regular expression of a split, or `other`."""
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return "gpt2"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"} if (
            not step.get("invert")
        ):
            return str(pattern)
    return "other"


def _unknown(what: str, found: Any) -> InvalidInput:
    return InvalidInput(
        f"the tokenizer's {what} has no counterpart known in llama.cpp: "
        f"{json.dumps(found, ensure_ascii=False)}",
        "known are the byte-level tokenizers of GPT-2, SmolLM, Llama 3 and Qwen 2, and "
        "Llama 2's with byte fallback; serve the directory with vLLM, which runs tokenizer.json",
    )
