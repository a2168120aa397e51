"""A sentencepiece-like tokenizer's merges as the scores that llama.cpp goes by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from giraffe_cli.errors import InvalidInput


def merge_pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges in order of rank; older files spell a pair as one string."""
    split = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in split]


def scores_of_merges(model: Mapping[str, Any], tokens: list[str]) -> tuple[list[float], int]:
    """Scores that make llama.cpp merge in the order of the merges, and how many pairs it would
    merge beyond them.

    llama.cpp's `llama` tokenizer merges any neighbours that make a token, the highest score first;
    a token's score is minus the rank of the first merge that makes it. Merges that alternate
    between tokens share a score; then the leftmost pair comes first, which for runs of one
    character (Llama 2's runs of spaces, all of one score there too) is the same.

    Raises:
        InvalidInput: the merges of other tokens alternate, which scores cannot say.
    """
    pairs = merge_pairs(model)
    rank = _shared_ranks([left + right for left, right in pairs])
    known, vocabulary = set(pairs), model["vocab"]
    unmerged = sum(
        (text[:cut], text[cut:]) not in known
        for text in vocabulary
        for cut in range(1, len(text))
        if text[:cut] in vocabulary and text[cut:] in vocabulary
    )
    lowest = -float(len(pairs))
    return [-float(rank[text]) if text in rank else lowest for text in tokens], unmerged


def _shared_ranks(products: list[str]) -> dict[str, int]:
    """Token → rank of its first merge; of tokens whose merges alternate, the first rank of all."""
    last = {product: rank for rank, product in enumerate(products)}
    first: dict[str, int] = {}
    for rank, product in enumerate(products):
        first.setdefault(product, rank)
    ranks: dict[str, int] = {}
    begin = end = -1
    group: list[str] = []
    for product, rank in first.items():
        if rank > end:
            begin, group = rank, []
        end = max(end, last[product])
        group.append(product)
        ranks[product] = begin
        if len(group) > 1 and len(set("".join(group))) > 1:
            raise InvalidInput(
                f"the tokenizer's merges of {group[0]!r} and {product!r} alternate, which "
                "llama.cpp's scores cannot express",
                "serve the directory with vLLM, which runs tokenizer.json",
            )
    return ranks
