"""Windows of held-out documents that end at the same tokens, whatever their length.

    anchors(size=10, longest=6, count=3, targets=2)      → 6, 8, 10
    window ends at 6:   length 4 → t2 t3 [t4 t5]         length 6 → t0 t1 t2 t3 [t4 t5]

A tokenizer's BOS takes the place of the first token of a window, so that a window is exactly as
long as asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.base import Example, Material, TokenDocument

CUT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of bytes that are no whole character: three bytes in the place of one."""
REACH = 8
"""Tokens that surely hold the beginning of a character, which is four bytes at the most."""


def longest_length(length: int, material: Material) -> int:
    """The longest of all lengths that are evaluated, `length` among them."""
    return max((length, *material.lengths))


def longest_within_native(task: str, length: int, material: Material) -> int:
    """The longest evaluated length within the native window, where short context is measured.

    Raises:
        InvalidInput: every evaluated length lies beyond it.
    """
    evaluated, native = sorted({length, *material.lengths}), material.native_length
    within = [tokens for tokens in evaluated if not native or tokens <= native]
    if not within:
        raise InvalidInput(
            f"task `{task}`: the shortest length {evaluated[0]} lies beyond the native window of "
            f"{native} tokens, which it is about",
            f"add {native} to --lengths, or leave the task out of --tasks",
        )
    return within[-1]


def long_enough(task: str, documents: Sequence[TokenDocument], tokens: int) -> list[TokenDocument]:
    """The documents of at least `tokens` tokens.

    Raises:
        InvalidInput: there is none.
    """
    usable = [document for document in documents if len(document.token_ids) >= tokens]
    if not usable:
        raise InvalidInput(
            f"task `{task}`: none of {len(documents)} documents has {tokens} tokens; "
            f"the longest has {max((len(d.token_ids) for d in documents), default=0)}",
            "evaluate on longer documents, or at shorter lengths",
        )
    return usable


def check_targets(task: str, length: int, targets: int, material: Material) -> None:
    """A window of `length` holds at least one token before its `targets`.

    Raises:
        InvalidInput: it does not.
    """
    if length < targets + len(material.bos_token_ids) + 1:
        raise InvalidInput(
            f"task `{task}`: length {length} leaves no context before {targets} targets",
            f"lower the targets, such as --set {task}.targets={max(1, length // 4)}",
        )


def anchors(size: int, longest: int, count: int, targets: int) -> list[int]:
    """Positions just after the last target, evenly over `[longest, size]`; fewer than `count`
    where blocks of targets would overlap."""
    fitting = min(count, 1 + (size - longest) // targets)
    return [int(position) for position in np.linspace(longest, size, fitting)]


def window(
    document: TokenDocument, end: int, length: int, targets: int, material: Material
) -> Example:
    """The `length` tokens of `document` before `end`, of which the last `targets` are scored;
    `details["bytes"]` are those of the text that the targets spell."""
    bos = np.asarray(material.bos_token_ids, np.int32)
    tokens = document.token_ids[end - length + len(bos) : end]
    return Example(
        key=f"{document.id}@{end}",
        cluster=document.id,
        length=length,
        token_ids=np.concatenate([bos, tokens]).astype(np.int32),
        num_targets=targets,
        details={
            "document": document.id,
            "anchor": end,
            "bytes": max(1, spelt_bytes(tokens.tolist(), targets, material)),
        },
    )


def spelt_bytes(tokens: Sequence[int], targets: int, material: Material) -> int:
    """Bytes of the text that the last `targets` of `tokens` spell; a character whose bytes two
    blocks of targets share counts in the one that ends it. Decoded behind what stands before them:
    tokenizers of Llama 2's kind take the blank from the beginning of a text."""
    before = tokens[-targets - REACH : -targets]
    whole, head = (material.decode(ids) for ids in ([*before, *tokens[-targets:]], before))
    return len(whole.rstrip(CUT).encode()) - len(head.rstrip(CUT).encode())


def bits_per_byte(example: Example, nats: float) -> float:
    """Bits for each byte that the targets of `example` spell; their loss is `nats` in all."""
    return nats / float(np.log(2)) / int(example.details["bytes"])
