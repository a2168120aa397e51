"""What is asked, as token ids: a prompt as it stands, or questions about one document.

    prompts(tokenizer, document, ["Who?", "When?"])     bare:  <bos> document \\n\\n question
                                                        chat:  the same text as the user's turn

The prompts of several questions begin alike; `common_tokens` says for how long.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.chat import WITHOUT, in_chat
from giraffe_cli.units import format_length

BETWEEN = "\n\n"
"""Between a document and what is asked about it."""


@dataclass(frozen=True)
class Prompt:
    """Token ids that an answer follows."""

    token_ids: list[int]
    question: str | None = None
    """What is asked about the document; None for a prompt as it stands."""


def prompts(
    tokenizer: Any, text: str, questions: Sequence[str] = (), *, chat: bool = False
) -> list[Prompt]:
    """One prompt for each question about `text`, or `text` alone where nothing is asked.

    Raises:
        InvalidInput: a chat template is asked for and there is none, or a prompt has no token.
    """
    if not text and not questions:
        raise InvalidInput("the prompt is empty", "give text to continue")
    encode = _in_chat(tokenizer) if chat else _bare(tokenizer)
    if not questions:
        found = [Prompt(encode(text))]
    else:
        found = [Prompt(encode(f"{text}{BETWEEN}{asked}"), asked) for asked in questions]
    if not all(prompt.token_ids for prompt in found):
        raise InvalidInput("the prompt is empty", "give text to continue")
    return found


def common_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens with which all of several prompts begin, at least one short of the shortest; 0 where
    there is one prompt."""
    if len(prompts) < 2:
        return 0
    columns = zip(*(prompt.token_ids for prompt in prompts), strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(alike, min(len(prompt.token_ids) for prompt in prompts) - 1)


def check_window(
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    window: int,
    source: str,
    options: str = "",
    extends: tuple[str, str] | None = None,
) -> None:
    """Every prompt and its answer lie within the window of the checkpoint; `options` are what else
    its extension needs, such as `--allow-pickle`; `extends` what must be done before it, and what
    is extended then, where that is not `source` as it is.

    Raises:
        InvalidInput: one does not; the hint is the command that gives it room.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    needed = longest + max_new_tokens
    if needed <= window:
        return
    target = format_length(next_length(needed))
    room = window - longest
    first, model = extends or ("", source)
    needs = f" {options}" if options else ""
    fewer = f", or --max-new-tokens {room}" if room > 0 else ""
    raise InvalidInput(
        f"the prompt has {longest:,} tokens, with {max_new_tokens:,} new ones {needed:,}; the "
        f"window of {source} is {window:,}",
        f"{first}giraffe extend --model {shlex.quote(model)} --target-len {target}{needs}{fewer}",
    )


def next_length(tokens: int) -> int:
    """The smallest power of two, at least 1k, that holds `tokens`; above 64k a multiple of 64k."""
    if tokens > 65536:
        return -(-tokens // 65536) * 65536
    return max(1024, 1 << (tokens - 1).bit_length())


def _bare(tokenizer: Any) -> Callable[[str], list[int]]:
    """As the tokenizer begins a text, without what it may put after it."""
    fast = tokenizer.backend_tokenizer  # without transformers' warning about long texts

    def encode(text: str) -> list[int]:
        encoded = fast.encode(text)
        ids, marks = list(encoded.ids), list(encoded.special_tokens_mask)
        while len(ids) > 1 and marks[-1]:
            ids.pop()
            marks.pop()
        return ids

    return encode


def _in_chat(tokenizer: Any) -> Callable[[str], list[int]]:
    if not tokenizer.chat_template:
        raise InvalidInput("--chat: the tokenizer has no chat template", WITHOUT)
    return in_chat(tokenizer)
