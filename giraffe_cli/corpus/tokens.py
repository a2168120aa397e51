"""Documents → token ids, by the fast tokenizer that lies beside a checkpoint; no transformers.

A document is `BOS? text EOS?`: each special token only when the tokenizer names one. Truncation and
padding saved in a `tokenizer.json` are switched off, they would silently shorten documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.store import Int32
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import digest_file, digest_value, read_json

BACKEND = "tokenizers"
BATCH_CHARACTERS = 1 << 20
"""Characters encoded at a time; an encoding takes about 100 bytes a token while it lives."""


class DocumentTokenizer:
    """Token ids of whole documents.

    Raises:
        InvalidInput: no `tokenizer.json`, a damaged one, or special tokens that it does not hold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tokenizer = _load(folder)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos, self.eos = self._special(folder, "bos_token"), self._special(folder, "eos_token")
        self._vocab_size = _vocab_size(folder)

    def __call__(self, documents: Iterable[Document]) -> Iterator[tuple[Document, Int32]]:
        """Each document with its ids, int32 [tokens], in order.

        Raises:
            InvalidInput: an id that the model beside the tokenizer has no embedding for.
        """
        for batch in _batches(documents):
            texts = [document.text for document in batch]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for document, encoding in zip(batch, encodings, strict=True):
                yield document, self._wrapped(encoding.ids)

    def _wrapped(self, ids: list[int]) -> Int32:
        before = [] if self.bos is None else [self.bos]
        after = [] if self.eos is None else [self.eos]
        wrapped = np.array([*before, *ids, *after], dtype=np.int32)
        highest = int(wrapped.max(initial=0))
        if self._vocab_size is not None and highest >= self._vocab_size:
            raise InvalidInput(
                f"the tokenizer in {self.folder} yields id {highest}, "
                f"the model has {self._vocab_size} embeddings",
                "the tokenizer is another model's: put the right tokenizer.json beside the model",
            )
        return wrapped

    def _special(self, folder: Path, name: str) -> int | None:
        token = _special_token(folder, name)
        identity: int | None = None if token is None else self._tokenizer.token_to_id(token)
        if token is not None and identity is None:
            raise InvalidInput(
                f"{folder / 'tokenizer_config.json'} names `{token}` as {name}, "
                "which tokenizer.json does not hold",
                "the two files are of different tokenizers: take both from one model",
            )
        return identity


def tokenizer_digest(path: Path) -> str:
    """Identity of how the checkpoint at `path` tokenises documents; window limits do not count.

    Raises:
        InvalidInput: no `tokenizer.json`.
    """
    return digest_value(
        {
            "tokenizer": digest_file(_tokenizer_file(path)),
            "bos": _special_token(path, "bos_token"),
            "eos": _special_token(path, "eos_token"),
        }
    )


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InvalidInput(
            f"{folder} has no tokenizer.json",
            "write one: transformers.AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    return path


def _load(folder: Path) -> Any:
    path = _tokenizer_file(folder)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a file it cannot parse
        raise InvalidInput(
            f"{path} is no tokenizer: {error}", "fetch the checkpoint again"
        ) from error


def _special_token(folder: Path, name: str) -> str | None:
    """`bos_token` as text; the file writes a string, an object with `content`, or null."""
    path = folder / "tokenizer_config.json"
    entry = read_json(path).get(name) if path.is_file() else None
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def _vocab_size(folder: Path) -> int | None:
    """Embeddings of the model in the same folder; None for a folder with a tokenizer only."""
    path = folder / "config.json"
    size = read_json(path).get("vocab_size") if path.is_file() else None
    return size if isinstance(size, int) else None


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
