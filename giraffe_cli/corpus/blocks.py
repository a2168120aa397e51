"""Training documents in, blocks of their ids out; a block that was finished before is kept.

Where a block ends follows from the texts alone, so that a unit which was cut off is cut at the same
places when it goes on. Memory: a few MB of text and its ids at a time, and 50 bytes for each
document of a block.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from giraffe_cli.corpus.base import Document
from giraffe_cli.corpus.duplicates import text_hash
from giraffe_cli.corpus.tools import Tools
from giraffe_cli.corpus.unit_files import Block, block_stem, finished_blocks, write_index
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rundir import commit_file, write_sealed


class UnitWriter:
    """Documents in, blocks out; knows which blocks an earlier process has finished."""

    def __init__(self, folder: Path, tools: Tools, identity: str) -> None:
        self.folder, self.tools, self.identity = folder, tools, identity
        self.blocks: list[dict[str, int]] = []
        self.files: dict[str, str] = {}
        self.documents = self.tokens = 0
        self._finished = list(finished_blocks(folder, identity))
        self._block, self._tokens, self._hasher = Block(), _temporary(folder), hashlib.sha256()

    def add(self, documents: list[Document]) -> int:
        """Tokenise or recognise the documents; how many tokens they gave."""
        before = self.tokens
        for part in self._by_block(documents):
            self._encode(part)
        return self.tokens - before

    def finish(self) -> None:
        """Write the last block."""
        if self._block.ids:
            self._flush()

    def close(self) -> None:
        """Leave no half-written block behind."""
        self._tokens.close()
        Path(self._tokens.name).unlink(missing_ok=True)

    def _by_block(self, documents: list[Document]) -> Iterator[list[Document]]:
        """Cut where a block is full: by text, so that a resumed unit is cut at the same places."""
        part: list[Document] = []
        for document in documents:
            part.append(document)
            self._block.text_bytes += len(document.text)
            if self._block.text_bytes >= self.tools.config.block_bytes:
                yield part
                self._flush()
                part = []
        if part:
            yield part

    def _encode(self, documents: list[Document]) -> None:
        texts = [document.text for document in documents]
        hashes = [text_hash(text) for text in texts]
        block = self._block
        if lengths := self._known(len(block.ids), hashes):
            block.lengths.append(lengths[0])
        else:
            names = [f"document {document.id}" for document in documents]
            ids, offsets = self.tools.tokenize.encode(
                texts, hashes, names, self.documents + len(block.ids)
            )
            block.lengths.append(np.diff(offsets))
            data = np.ascontiguousarray(ids).data
            self._hasher.update(data)
            with _named(Path(self._tokens.name)):
                self._tokens.write(data)
        block.ids += [document.id for document in documents]
        block.hashes += hashes
        if self.tools.grams:
            block.contaminated += [self.tools.grams.contaminates(text) for text in texts]
        self.tokens += int(block.lengths[-1].sum())

    def _known(self, start: int, hashes: list[bytes]) -> list[Any]:
        """Token counts from a block that an earlier process finished, when the texts are its."""
        if not self._finished or len(self.blocks) >= len(self._finished):
            return []
        index = self._finished[len(self.blocks)]
        expected = index["hashes"][start : start + len(hashes)].tobytes()
        if expected != b"".join(hashes):
            raise InvalidInput(
                f"{self.folder} holds tokens of other texts than its source has now",
                f"remove {self.folder}",
            )
        return [index["lengths"][start : start + len(hashes)]]

    def _flush(self) -> None:
        number, block = len(self.blocks), self._block
        stem = block_stem(number)
        if number < len(self._finished):
            tokens, index = (self._finished[number][key] for key in ("tokens", "index"))
        else:
            tokens = self._commit_tokens(f"{stem}.tokens")
            index = write_index(self.folder / f"{stem}.npz", block)
            entry = {"identity": self.identity, "tokens": tokens, "index": index}
            write_sealed(self.folder / f"{stem}.json", entry)
        self.files |= {f"{stem}.tokens": tokens, f"{stem}.npz": index}
        lengths = int(sum(int(part.sum()) for part in block.lengths))
        self.blocks.append({"documents": len(block.ids), "tokens": lengths})
        self.documents += len(block.ids)
        self._block = Block()

    def _commit_tokens(self, name: str) -> str:
        """Rename what was written so far; its digest."""
        self._tokens.close()
        digest = self._hasher.hexdigest()
        commit_file(Path(self._tokens.name), self.folder / name)
        self._tokens, self._hasher = _temporary(self.folder), hashlib.sha256()
        return digest


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of the disk within the block is told of this file, not of one around it."""
    try:
        yield
    except OSError as error:
        raise GiraffeError(
            f"cannot write {path}: {error.strerror or error}",
            "free disk space or choose another --out",
        ) from error


def _temporary(folder: Path) -> IO[bytes]:
    return open(folder / "block.tokens.partial", "wb")  # noqa: SIM115 - renamed block by block
