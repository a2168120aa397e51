"""The tokenizer as llama.cpp runs it: tokens with their types, merges or scores, special ids.

What is read is the pipeline that transformers runs after loading (`backend_tokenizer`), not what
the files might be meant to say. Two families are known: byte-level BPE (`gpt2` with merges and a
named pre-tokenizer) and sentencepiece-like BPE with byte fallback (`llama` with scores).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.export.gguf_ends import further_ends
from giraffe_cli.export.gguf_pretoken import (
    adds_space_prefix,
    byte_level_pre,
    is_byte_level,
    only_composes,
)
from giraffe_cli.export.gguf_scores import merge_pairs, scores_of_merges
from giraffe_cli.gguf_pipelines import SPACE
from giraffe_cli.model.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TokenType(IntEnum):
    """llama.cpp's kinds of tokens (`enum llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Everything under `tokenizer.*` in the file."""

    model: str
    """`gpt2` or `llama`."""
    pre: str
    """llama.cpp's name of the pre-tokenizer."""
    tokens: list[str]
    """`[vocab_size]`; ids that the tokenizer does not use are `[PADn]`."""
    types: list[int]
    merges: list[str] | None
    scores: list[float] | None
    special_ids: dict[str, int]
    """`bos`, `eos`, `eot` (a second end), `unk`, `pad`, as far as there are any."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool | None
    chat_template: str | None
    warnings: list[str] = field(default_factory=list)
    """What llama.cpp will do otherwise than transformers."""


def read_vocabulary(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """The tokenizer of a model directory.

    Raises:
        InvalidInput: a tokenizer that llama.cpp has no counterpart of; the message names the part.
    """
    tokenizer = load_tokenizer(folder)
    value = json.loads(tokenizer.backend_tokenizer.to_str())
    model = value["model"]
    if model["type"] != "BPE":
        raise InvalidInput(
            f"the tokenizer of {folder} is {model['type']}, and GGUF export knows BPE",
            "serve the directory with vLLM, which runs tokenizer.json",
        )
    byte_level = is_byte_level(value)
    if not byte_level and not model.get("byte_fallback"):
        raise InvalidInput(
            f"the tokenizer of {folder} is BPE over characters without byte fallback, which "
            "llama.cpp cannot run",
            "serve the directory with vLLM, which runs tokenizer.json",
        )
    pre = byte_level_pre(value) if byte_level else "default"
    special = _special_ids(tokenizer, config)
    tokens, types = _tokens(value, vocab_size, special.get("unk"), byte_level)
    ends = further_ends(folder, config, special, tokens)
    if ends:
        special["eot"] = ends[0]
    scores, unmerged = (None, 0) if byte_level else scores_of_merges(model, tokens)
    add_bos, add_eos = _additions(tokenizer, special)
    return Vocabulary(
        model="gpt2" if byte_level else "llama",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=_merges(model) if byte_level else None,
        scores=scores,
        special_ids=special,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=None if byte_level else adds_space_prefix(value),
        chat_template=_chat_template(tokenizer),
        warnings=_warnings(value, unmerged) + _ends_left_out([tokens[n] for n in ends[1:]]),
    )


def _tokens(
    value: Mapping[str, Any], vocab_size: int, unk: int | None, byte_level: bool
) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{n}]" for n in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for text, index in value["model"]["vocab"].items():
        tokens[index] = text
        is_byte = not byte_level and _BYTE_TOKEN.fullmatch(text)
        types[index] = TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in value["added_tokens"]:
        text, index = added["content"], added["id"]
        tokens[index] = text if added["special"] else text.replace(SPACE, " ")
        types[index] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if unk is not None and not byte_level:
        types[unk] = TokenType.UNKNOWN
    if len(set(tokens)) < vocab_size:
        twice = sorted({text for text in tokens if tokens.count(text) > 1})
        raise InvalidInput(f"the tokenizer has {twice[0]!r} twice, which llama.cpp refuses")
    return tokens, types


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [f"{left} {right}" for left, right in merge_pairs(model)]


def _special_ids(tokenizer: PreTrainedTokenizerFast, config: Mapping[str, Any]) -> dict[str, int]:
    """The tokenizer's own, else the config's (of several end tokens, the first)."""
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id", None)
        index = config.get(f"{name}_token_id") if index is None else index
        index = index[0] if isinstance(index, list) else index
        if isinstance(index, int) and index >= 0:
            found[name] = index
    return found


def _additions(tokenizer: PreTrainedTokenizerFast, special: Mapping[str, int]) -> tuple[bool, bool]:
    """`(bos before, eos behind)` a text, found by asking.

    Raises:
        InvalidInput: something else is added, which GGUF cannot say.
    """
    plain = tokenizer("a b", add_special_tokens=False).input_ids
    full = tokenizer("a b").input_ids
    for add_bos in (False, True):
        for add_eos in (False, True):
            before = [special.get("bos")] if add_bos else []
            behind = [special.get("eos")] if add_eos else []
            if full == before + plain + behind:
                return add_bos, add_eos
    raise InvalidInput(
        f"the tokenizer makes {full} of a text whose tokens are {plain}; GGUF can only add the "
        f"beginning and the end token ({special})"
    )


def _chat_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def _ends_left_out(names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"llama.cpp does not end at {', '.join(names[:3])}: a GGUF names two end tokens"]


def _warnings(value: Mapping[str, Any], unmerged: int) -> list[str]:
    found = []
    stripping = [
        token["content"]
        for token in value["added_tokens"]
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word")
    ]
    if stripping:
        found.append(
            f"llama.cpp does not strip the spaces around {', '.join(stripping[:3])} as the "
            "tokenizer does"
        )
    if unmerged:
        found.append(
            f"llama.cpp merges {unmerged} pairs of tokens that the tokenizer's merges leave apart"
        )
    if value.get("normalizer") and only_composes(value):
        found.append("llama.cpp does not bring text into Unicode's NFC form; the tokenizer does")
    step = value.get("pre_tokenizer") or {}
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
        found.append(
            "llama.cpp puts a space before every text and behind special tokens; the tokenizer "
            "not before a text that begins with one"
        )
    return found
