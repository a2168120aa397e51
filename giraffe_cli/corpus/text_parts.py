"""Texts tokenised a few at a time, long ones a few parts at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.cuts import PART_CHARACTERS, Span
from giraffe_cli.errors import GiraffeError

UInt32 = npt.NDArray[np.uint32]
Int64 = npt.NDArray[np.int64]

BATCH_CHARACTERS = 1 << 20
"""Of texts and parts that are tokenised at a time."""
BYTES_A_BYTE = 120
"""What `tokenizers` takes for a byte of text while it tokenises it: 100 to 116 for English and
Chinese by SmolLM2's, up to 180 by vocabularies of a few hundred tokens."""
UNCHECKED_CHARACTERS = 1 << 24
"""Of a text that is taken to fit, about 2 GB."""


def in_parts(
    encode: Callable[[list[str]], tuple[UInt32, Int64]],
    texts: list[str],
    spans: Callable[[str], list[Span]],
) -> tuple[UInt32, Int64]:
    """`encode(texts)`, of which each is given in the parts that `spans` tells.

    Returns:
        All ids end to end, and [texts + 1] where each text's begin.
    """
    found = [np.empty(0, dtype=np.uint32)]
    lengths = np.zeros(len(texts), dtype=np.int64)
    for numbers, batch in _batches(texts, spans):
        ids, offsets = encode(batch)
        found.append(ids)
        np.add.at(lengths, numbers, np.diff(offsets))
    return np.concatenate(found), np.concatenate([[0], np.cumsum(lengths)])


def _batches(
    texts: list[str], spans: Callable[[str], list[Span]]
) -> Iterator[tuple[list[int], list[str]]]:
    """Parts, about `BATCH_CHARACTERS` at a time, behind the numbers of the texts they are of."""
    numbers: list[int] = []
    batch: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for start, end in spans(text) if len(text) > PART_CHARACTERS else [(0, len(text))]:
            numbers.append(number)
            batch.append(text[start:end])
            size += end - start
            if size >= BATCH_CHARACTERS:
                yield numbers, batch
                numbers, batch, size = [], [], 0
    if batch:
        yield numbers, batch


def check_memory(texts: list[str]) -> None:
    """Refuse what `tokenizers` would be killed by.

    Raises:
        GiraffeError: a text takes more memory than there is.
    """
    longest = max(texts, key=len, default="")
    if len(longest) <= UNCHECKED_CHARACTERS:
        return
    from giraffe_cli.plan.machine import available_bytes

    size, available = len(longest.encode()), available_bytes()
    if BYTES_A_BYTE * size > available:
        raise GiraffeError(
            f"a document of {size / 1e6:,.1f} MB takes about {BYTES_A_BYTE * size / 1e9:,.1f} GB "
            f"to tokenise, {available / 1e9:,.1f} GB are free: it cannot be cut, as its tokenizer "
            "is of a kind not known to allow it, or there are no words in it",
            "cut it into documents, or leave it out: --max-doc-bytes, with --on-bad skip",
        )
