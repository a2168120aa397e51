"""llama.cpp's names of pre-tokenizers, and the steps of a `tokenizer.json` that do the same.

llama.cpp has no general pre-tokenizer: `tokenizer.ggml.pre` selects one of its compiled regular
expressions, and a wrong one splits text differently without a word. Known here are the byte-level
ones whose expressions were read in llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from typing import Any

SPACE = "▁"
"""What sentencepiece writes for a space (U+2581)."""
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
"""Words, numbers in groups of three, punctuation, line ends (Llama 3's tokenizer.json)."""
QWEN_2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
"""The same with single digits (Qwen 2's tokenizer.json)."""
TEKKEN = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*",
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)
"""Words that may end in a capital, single digits (Mistral NeMo's tokenizer.json)."""
NAMES: dict[tuple[tuple[str, ...], bool], tuple[str, ...]] = {
    (("gpt2",), False): ("gpt-2", "phi-2", "mpt", "olmo", "jais"),
    (("digits", "gpt2"), False): ("smollm", "starcoder", "refact", "command-r", "codeshell"),
    ((LLAMA_3, "bytes"), True): (
        "llama-bpe",
        "llama3",
        "llama-v3",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
    ),
    ((TEKKEN, "bytes"), True): ("tekken",),
    ((LLAMA_3, "bytes"), False): ("smaug-bpe", "dbrx"),
    ((QWEN_2, "bytes"), False): ("qwen2", "deepseek-r1-qwen", "kormo", "megrez"),
}
"""By steps, and whether a text that is one token is taken whole though no merge leads there; the
first name is the one that is written."""


def known_names() -> list[str]:
    """Every name that `steps_of` knows."""
    return [name for names in NAMES.values() for name in names]


def steps_of(name: str) -> tuple[list[dict[str, Any]], bool]:
    """`(pre-tokenizing steps of a tokenizer.json, ignore_merges)` for llama.cpp's `name`.

    Raises:
        KeyError: a name that is not known here.
    """
    for (steps, ignores_merges), names in NAMES.items():
        if name in names:
            return [_step(step) for step in steps], ignores_merges
    raise KeyError(name)


def begins_with_bos(name: str) -> bool:
    """Whether llama.cpp begins a text with BOS where the file does not say: it does for the names
    whose texts are looked up whole."""
    return any(name in names for (_, ignores_merges), names in NAMES.items() if ignores_merges)


def metaspace_normalizer(add_space_prefix: bool) -> dict[str, Any]:
    """The normalizer of a sentencepiece-like `tokenizer.json`: spaces become `SPACE`, after one was
    put before each text."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    return {"type": "Sequence", "normalizers": [*[prepend] * add_space_prefix, replace]}


def _step(kind: str) -> dict[str, Any]:
    if kind == "digits":
        return {"type": "Digits", "individual_digits": True}
    if kind in ("bytes", "gpt2"):
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": kind == "gpt2",
        }
    return {"type": "Split", "pattern": {"Regex": kind}, "behavior": "Isolated", "invert": False}
