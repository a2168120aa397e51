"""Documents that hold text of an evaluation: word 13-grams shared with given files.

    grams = EvaluationGrams.of(["bench/questions.jsonl"])
    grams.hits("... a document ...")   # how many of its 13-grams an evaluation text holds

Words are runs of letters and digits, lower-cased and in Unicode's compatible form (NFKC), so that
punctuation, line breaks and how an accent is written hide nothing; of Chinese and Japanese, which
put no blanks between words, a character is one. 13 words are what Brown et al. 2020 (GPT-3,
appendix C) compare. A document counts as contaminated from `CONTAMINATED_FROM` hits on: 15 words in
a row, so that a stock phrase alone removes no book.
Evaluation texts of fewer than 13 words are compared by nothing, and counted. Cost: one dictionary
look-up a word, about 5 MB of text a second; memory: 8 bytes a 13-gram of the evaluation.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import digest_file

WORDS = 13
CONTAMINATED_FROM = 3
UInt64 = npt.NDArray[np.uint64]

_NO_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana and Han characters."""
_WORD = re.compile(rf"[{_NO_BLANKS}]|[^\W{_NO_BLANKS}]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd 64-bit number (2^64 divided by the golden ratio), the base of the polynomial hash."""


@dataclass(frozen=True)
class EvaluationGrams:
    """The 13-grams of evaluation texts."""

    vocabulary: dict[str, int]
    """Word → number from 1; a word of no evaluation text is 0 and ends every match."""
    hashes: UInt64
    """Sorted hashes of the 13-grams."""
    files: dict[str, str]
    """File → sha256."""
    texts: int
    """Texts that were compared."""
    texts_too_short: int
    """Texts of fewer than 13 words."""

    @staticmethod
    def of(files: Iterable[str]) -> EvaluationGrams:
        """Read evaluation files: every string of a `.jsonl`, `.ndjson` or `.json` (`.gz`), else the
        whole text.

        Raises:
            InvalidInput: a file is missing, unreadable or holds no text of 13 words.
        """
        names = list(files)
        vocabulary: dict[str, int] = {}
        parts: list[UInt64] = [np.empty(0, dtype=np.uint64)]
        compared = short = 0
        for text in (text for name in names for text in _texts(Path(name))):
            words = _words(text)
            if len(words) < WORDS:
                short += 1
                continue
            compared += 1
            numbers = [vocabulary.setdefault(word, len(vocabulary) + 1) for word in words]
            parts.append(_hashes(np.array(numbers, dtype=np.uint64)))
        if not compared:
            raise InvalidInput(
                f"--decontaminate {', '.join(names)}: no text of {WORDS} words or more",
                "name the files that hold the evaluation's texts",
            )
        digests = {name: digest_file(Path(name)) for name in names}
        return EvaluationGrams(
            vocabulary, np.unique(np.concatenate(parts)), digests, compared, short
        )

    def hits(self, text: str) -> int:
        """How many 13-word runs of `text` lie in an evaluation text."""
        words = _words(text)
        known = self.vocabulary.get
        numbers = np.fromiter((known(word, 0) for word in words), np.uint64, len(words))
        if len(numbers) < WORDS:
            return 0
        found = _hashes(numbers)
        at = np.minimum(np.searchsorted(self.hashes, found), len(self.hashes) - 1)
        # No evaluation hash holds a 0, so a run with an unknown word equals none of them.
        return int((self.hashes[at] == found).sum())

    def contaminates(self, text: str) -> bool:
        """Whether `text` shares `CONTAMINATED_FROM` 13-grams or more."""
        return self.hits(text) >= CONTAMINATED_FROM

    def report(self) -> dict[str, Any]:
        """What documents were compared with, for `stats.json` → `contamination`."""
        return {
            "files": sorted(self.files),
            "texts": self.texts,
            "texts_too_short": self.texts_too_short,
            "words": WORDS,
            "hits": CONTAMINATED_FROM,
        }


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _hashes(numbers: UInt64) -> UInt64:
    """[n - 12] polynomial hash of each 13 neighbouring word numbers, modulo 2^64."""
    count = len(numbers) - WORDS + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(WORDS):
        hashes = hashes * _MULTIPLIER + numbers[offset : offset + count]
    return hashes


def _texts(path: Path) -> Iterator[str]:
    """Raises:
    InvalidInput: missing, unreadable, not UTF-8, or a line that is no JSON.
    """
    name = path.name.lower()
    opened: Any = gzip.open if name.endswith(".gz") else open
    kind = Path(name.removesuffix(".gz")).suffix
    try:
        with opened(path, "rt", encoding="utf-8-sig") as handle:
            if kind in (".jsonl", ".ndjson"):
                yield from _of_lines(handle, path)
            elif kind == ".json":
                yield from _of_json(handle.read(), path)
            else:
                yield handle.read()
    except FileNotFoundError as error:
        raise InvalidInput(f"--decontaminate `{path}` does not exist", "check the path") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InvalidInput(f"--decontaminate {path} cannot be read: {error}") from error


def _of_json(text: str, path: Path) -> Iterator[str]:
    """One value, or lines of values under the name of one."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from _of_lines(text.split("\n"), path)
    else:
        yield from _strings(whole)


def _of_lines(lines: Iterable[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from _strings(_parsed(line, f"{path}:{number}"))


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"--decontaminate {where}: not valid JSON") from error
    except RecursionError as error:
        raise InvalidInput(f"--decontaminate {where}: nested too deeply") from error


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value: questions, answers and contexts have many field names."""
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            waiting += reversed(entry.values())
        elif isinstance(entry, list):
            waiting += reversed(entry)
