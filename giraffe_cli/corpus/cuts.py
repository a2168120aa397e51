"""Where a long text may be cut: the ids of its parts, end to end, are those of the whole.

That is between a word and the white space behind it, of tokenizers that never join the two:

- byte-level ones whose expression is known: in none is white space behind a letter or a digit part
  of one match, and none looks back. Cut before a space or a line break.
- sentencepiece-like ones that merge over the whole text: no entry of the vocabulary holds a word's
  end and a space, so no merge spans them. Cut before a space and a word; where each text gets a
  space before it, that one is left out.

    cuts_of(tokenizer).spans("the grass is green", 8) → (0, 9), (9, 18)

Of another tokenizer nothing is known and it has no cuts. Added tokens must not span one either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from giraffe_cli.gguf_pipelines import LLAMA_3, QWEN_2, SPACE, TEKKEN

Span = tuple[int, int]
PART_CHARACTERS = 1 << 18
"""The least length of a part but the last."""

WORD = (
    "[0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u0220\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f"
    "\u05d0-\u05ea\u0621-\u063a\u0641-\u064a\u0905-\u0939\u0e01-\u0e30\u3041-\u3094\u30a1-\u30fa"
    "\u4e00-\u9fa5\uac00-\ud7a3]"
)
"""Letters and digits of many scripts that every version of Unicode since 3.2 calls so."""
_BEFORE_WHITE = re.compile(f"(?<={WORD})(?=[ \n])")
_BEFORE_WORD = re.compile(f"(?<={WORD})(?= {WORD})")
_SPANS = re.compile(f"{WORD}[ \n]")
_BEGINS = re.compile(f"{WORD}| ")
_EXPRESSIONS = (LLAMA_3, QWEN_2, TEKKEN)
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}


@dataclass(frozen=True)
class Cuts:
    """The places of one tokenizer where texts may be cut."""

    place: re.Pattern[str]
    """Matches nothing, at each of them."""
    left_out: int = 0
    """Characters that a later part begins without: the tokenizer writes them itself."""

    def spans(self, text: str, least: int = PART_CHARACTERS) -> Iterator[Span]:
        """Where each part begins and ends; all but the last have `least` characters or more."""
        start = 0
        while match := self.place.search(text, start + least):
            yield start, match.start()
            start = match.start() + self.left_out
        yield start, len(text)


def cuts_of(tokenizer: Any) -> Cuts | None:
    """Those of a `tokenizers.Tokenizer`; None where it is not known to have any."""
    normalizers = _steps(tokenizer.normalizer, "normalizers")
    steps = _steps(tokenizer.pre_tokenizer, "pretokenizers")
    tokens = list(tokenizer.get_added_tokens_decoder().values())
    if any(_may_span(token) for token in tokens):
        return None
    if all(step == {"type": "NFC"} for step in normalizers) and _is_byte_level(steps):
        return Cuts(_BEFORE_WHITE)
    prepends = normalizers == [_PREPEND, _REPLACE] and not steps
    replaces = normalizers == [_REPLACE] and not steps
    if not (prepends or replaces or (not normalizers and _is_metaspace(steps))):
        return None
    if any(_BEGINS.match(token.content) for token in tokens) or not _merges_within_words(tokenizer):
        return None
    return Cuts(_BEFORE_WORD, int(prepends))


def _steps(part: Any, inner: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, step by step; nothing for none."""
    if part is None:
        return []
    try:
        return list(_flat(json.loads(part.__getstate__()), inner))
    except Exception:  # one that is written in Python has no state
        return [{"type": "other"}]


def _flat(node: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    if node["type"] == "Sequence":
        for child in node[inner]:
            yield from _flat(child, inner)
    else:
        yield node


def _is_byte_level(steps: list[dict[str, Any]]) -> bool:
    """Whether the steps are those of GPT-2, SmolLM, Llama 3, Qwen 2 or Mistral NeMo."""
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if steps[-1]["use_regex"]:
        return all(step["type"] == "Digits" for step in steps[:-1])
    isolated = {"type": "Split", "behavior": "Isolated", "invert": False}
    known = [{**isolated, "pattern": {"Regex": pattern}} for pattern in _EXPRESSIONS]
    return len(steps) == 2 and steps[0] in known


def _is_metaspace(steps: list[dict[str, Any]]) -> bool:
    return len(steps) == 1 and (steps[0]["type"], steps[0].get("replacement")) == (
        "Metaspace",
        SPACE,
    )


def _merges_within_words(tokenizer: Any) -> bool:
    """Whether the model merges pairs alone, and no token has a word's end before a space."""
    model = tokenizer.model
    if type(model).__name__ != "BPE" or model.dropout or model.ignore_merges:
        return False
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    tokens = tokenizer.get_vocab(with_added_tokens=False)
    spans = re.compile(f"{WORD}{SPACE}")
    return SPACE in tokens and not any(spans.search(token) for token in tokens)


def _may_span(token: Any) -> bool:
    """Whether an added token may take in a cut, or be found in a part alone."""
    at_white = token.single_word and token.content[:1] in (" ", "\n")
    takes_white = token.rstrip and re.fullmatch(WORD, token.content[-1:])
    return bool(_SPANS.search(token.content) or at_white or takes_white)
