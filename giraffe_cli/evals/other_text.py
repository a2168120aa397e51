"""Text of another domain where the user names none: the help topics of the running Python.

They are prose about the language (CPython 3.11: 79 topics, 465,000 characters), stand in no source
file of the standard library, which the `python-stdlib` corpus therefore does not hold, and need no
file and no network. Most topics are short, so consecutive ones are joined until they fill a window:

    documentation(encode, tokens=1024)   → ~100 documents        tokens=8192 → ~13
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np

from giraffe_cli.evals.base import TokenDocument

NAME = "the help topics of the running Python"


def documentation(
    encode: Callable[[str], list[int]], tokens: int, most: int
) -> list[TokenDocument]:
    """At most `most` documents of at least `tokens` tokens, evenly over the alphabet; what does
    not fill one at its end is left over."""
    topics = importlib.import_module("pydoc_data.topics").topics
    documents: list[TokenDocument] = []
    names, ids = list[str](), list[int]()
    for name in sorted(topics):
        names.append(name)
        ids += encode(f"{topics[name]}\n\n")
        if len(ids) >= tokens:
            title = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
            documents.append(TokenDocument(title, np.asarray(ids, np.int32)))
            names, ids = [], []
    chosen = np.linspace(0, len(documents) - 1, min(most, len(documents)))
    return [documents[int(place)] for place in chosen]
