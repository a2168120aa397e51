"""How much of a text packed windows train on, whatever ids and files either came from.

    trained_shares(["… a book …"], [open_packed(folder)], tokenizer, reporter)   # [0.97]

Compared are runs of `RUN` tokens in a row. Blanks count for nothing: a token is known by its text
without spaces and line breaks, and one of nothing else is passed over, so that other line ends and
blanks before them hide nothing. Of a text every `STEP`-th run is looked up and of the windows all,
so a piece of `RUN + STEP` tokens is found wherever it lies in both (as rsync does, Tridgell 1999).
Windows are read as they lie on the disk: what is compared is what is trained on, piece by piece,
and packing keeps no record for it.

Cost: half a CPU-second for 12 M packed tokens, and the texts' tokenising. Memory: one row group,
and 8 bytes for each `STEP` tokens of the texts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.corpus.backends import Disagreement
from giraffe_cli.corpus.store import PackedRows, columns
from giraffe_cli.corpus.tokens import DocumentTokenizer, vocabulary
from giraffe_cli.progress import Reporter

RUN = 32
"""Tokens in a row: about 25 words, past stock phrases. Training text is cleaned of an evaluation's
by 13 words (Brown et al. 2020), of its own repetitions by 50 tokens (Lee et al. 2022)."""
STEP = 16
BATCH_CHARACTERS = 4 << 20
"""Text that is tokenised at a time."""
_MULTIPLIER = 0x9E3779B97F4A7C15
"""As in `contamination.py`: an odd 64-bit number, the base of the polynomial hash."""
_BLANKS = " \t\r\n\u2581"
"""White space, and what stands for a space in vocabularies that come from SentencePiece."""
_BYTE_BLANKS = _BLANKS + "ĠĉĊċČč"
"""Byte-level vocabularies write the bytes 0x20 and 0x09 to 0x0d so."""
_BLANK_BYTES = {f"<0x{byte:02X}>" for byte in (0x20, *range(0x09, 0x0E))}
"""SentencePiece's tokens of single bytes."""

UInt64 = npt.NDArray[np.uint64]


def trained_shares(
    texts: Sequence[str], packed: Sequence[PackedRows], tokenizer: Path, reporter: Reporter
) -> npt.NDArray[np.float64]:
    """[texts] the share of each text's runs that the windows hold; 0 for one of no run.

    Args:
        tokenizer: a folder with the tokenizer that `packed` was packed with.

    Raises:
        InvalidInput: the tokenizer cannot be used.
    """
    numbers = token_numbers(vocabulary(tokenizer))
    runs = _runs_of(texts, tokenizer, numbers)
    wanted = _Wanted(np.concatenate([*runs, np.empty(0, np.uint64)]))
    if len(wanted.hashes):
        windows = sum(len(rows) for rows in packed)
        with reporter.bar("comparing with trained text", windows, "windows") as bar:
            for rows in packed:
                for group in columns(rows.folder, "input_ids"):
                    wanted.look_in(_runs(_known(numbers, group.flatten().to_numpy())))
                    bar.advance(len(group))
    return np.array([wanted.share(own) for own in runs], dtype=np.float64)


def token_numbers(tokens: dict[str, int]) -> UInt64:
    """[highest id + 1] a number for each id: equal for tokens that differ in blanks, 0 for blanks.

    Example: `Ġsun` and `sun` → the same; `Ċ` → 0.
    """
    by_bytes = sum(token.startswith("Ġ") for token in tokens)
    of_sentencepiece = sum(token.startswith("\u2581") for token in tokens)
    blanks = _BYTE_BLANKS if by_bytes > of_sentencepiece else _BLANKS
    numbers = np.zeros(max(tokens.values(), default=-1) + 1, dtype=np.uint64)
    known: dict[str, int] = {}
    for token, identity in tokens.items():
        bare = "" if token in _BLANK_BYTES else token.strip(blanks)
        numbers[identity] = known.setdefault(bare, len(known) + 1) if bare else 0
    return numbers


class _Wanted:
    """Hashes that are looked for; remembers which were met."""

    def __init__(self, hashes: UInt64) -> None:
        self.hashes = np.unique(hashes)
        self._met = np.zeros(len(self.hashes), dtype=bool)
        # Sixteen places a hash: of what is not wanted one in sixteen needs a binary search.
        bits = max(10, (16 * len(self.hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._places = np.zeros(1 << bits, dtype=bool)
        self._places[self.hashes >> self._shift] = True

    def look_in(self, hashes: UInt64) -> None:
        """Note those of `hashes` that are wanted."""
        likely = hashes[self._places[hashes >> self._shift]]
        at = self._at(likely)
        self._met[at[self.hashes[at] == likely]] = True

    def share(self, hashes: UInt64) -> float:
        """How many of `hashes`, all of them wanted, were met."""
        return float(self._met[self._at(hashes)].mean()) if len(hashes) else 0.0

    def _at(self, hashes: UInt64) -> Any:
        return np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)


def _runs(numbers: UInt64) -> UInt64:
    """[n - RUN + 1] polynomial hash of each `RUN` neighbours, modulo 2^64, by doubling."""
    hashes, length, factor = numbers, 1, _MULTIPLIER
    while length < RUN:
        hashes = hashes[:-length] * np.uint64(factor) + hashes[length:]
        length, factor = 2 * length, factor * factor % (1 << 64)
    return hashes


def _known(numbers: UInt64, ids: npt.NDArray[Any]) -> UInt64:
    """The numbers of `ids` that are no blanks."""
    found: UInt64 = numbers[ids]
    return found[found > 0]


def _runs_of(texts: Sequence[str], tokenizer: Path, numbers: UInt64) -> list[UInt64]:
    """Every `STEP`-th run of each text; by `tokenizers` where fastokens disagrees with it."""
    try:
        return _encoded(texts, DocumentTokenizer(tokenizer, bos="no", eos="no"), numbers)
    except Disagreement:
        slow = DocumentTokenizer(tokenizer, "tokenizers", bos="no", eos="no")
        return _encoded(texts, slow, numbers)


def _encoded(texts: Sequence[str], tokenizer: DocumentTokenizer, numbers: UInt64) -> list[UInt64]:
    found: list[UInt64] = []
    batch: list[str] = []
    size = 0
    for place, text in enumerate(texts, start=1):
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS or place == len(texts):
            ids, offsets = tokenizer.encode(batch, before=len(found))
            for begin, end in itertools.pairwise(offsets):
                # a copy: a view would keep all runs in memory
                found.append(_runs(_known(numbers, ids[begin:end]))[::STEP].copy())
            batch, size = [], 0
    return found
