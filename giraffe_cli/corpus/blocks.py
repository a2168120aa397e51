"""The first phase of packing: a unit's documents → token ids on disk. Any process, any order.

    work/unit-00012/block-0000.tokens   ids of whole documents end to end, little-endian
                    block-0000.npz      about each document: tokens, hash of the text, id, flags
                    block-0000.json     digests of the two: the block counts from here on
                    held.jsonl          documents kept out of training, not tokenised
                    done.json           written last: inputs and the digest of every file

What is written is a function of the unit and the config alone. A unit whose `done.json` holds is
not read again; of one that was cut off, the blocks that hold are not tokenised again. Memory: a few
MB of text and its ids at a time, and 50 bytes for each document of a block.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.backends import Disagreement
from giraffe_cli.corpus.base import BadRecords, Document, Unit
from giraffe_cli.corpus.changes import raw_digest, unchanged
from giraffe_cli.corpus.contamination import EvaluationGrams
from giraffe_cli.corpus.duplicates import HASH_BYTES
from giraffe_cli.corpus.holdout import is_held_out, rank
from giraffe_cli.corpus.sources import reader_of
from giraffe_cli.corpus.tokens import DocumentTokenizer, tokenizer_digest
from giraffe_cli.errors import InvalidInput
from giraffe_cli.lock import held
from giraffe_cli.progress import Bar
from giraffe_cli.rundir import (
    LOCK,
    atomic_open,
    commit_file,
    digest_bytes,
    digest_file,
    digest_value,
    make_folder,
    read_json,
    write_sealed,
)

FORMAT = 2
"""Counts changes of what is written here."""
BATCH_BYTES = 4 << 20
"""Text that is tokenised at a time; fastokens needs no more for its full speed."""
DONE, HELD = "done.json", "held.jsonl"
_IDENTIFYING = ("hold_out", "on_bad", "text_field", "bos", "eos", "max_doc_bytes", "block_bytes")
"""Knobs of `PackConfig` that decide what this phase writes."""


@dataclass
class Tools:
    """What one process needs for all its units."""

    tokenize: DocumentTokenizer
    config: PackConfig
    grams: EvaluationGrams | None
    inputs: dict[str, Any]
    """What decides the ids beside the unit."""
    kept: str | None = None
    """A document that is not held out, whatever its hash: else there were none to train on."""

    @staticmethod
    def of(folder: Path, config: PackConfig, kept: str | None = None) -> Tools:
        """Open the tokenizer in `folder` and the evaluation files.

        Raises:
            InvalidInput: either cannot be used.
        """
        tokenize = DocumentTokenizer(folder, config.backend, config.bos, config.eos)
        grams = EvaluationGrams.of(config.decontaminate) if config.decontaminate else None
        inputs = {
            "format": FORMAT,
            "tokenizer": tokenizer_digest(folder),
            "config": config.model_dump(mode="json", include=set(_IDENTIFYING)),
            "decontaminate": grams.files if grams else {},
            "kept": kept,
        }
        return Tools(tokenize, config, grams, inputs, kept)


@dataclass
class Block:
    """Documents that wait to be written together."""

    ids: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    lengths: list[Any] = field(default_factory=list)
    """One array of token counts a batch."""
    contaminated: list[bool] = field(default_factory=list)
    text_bytes: int = 0


def unit_folder(work: Path, number: int) -> Path:
    """`work/unit-00012`."""
    return work / f"unit-{number:05d}"


def unit_inputs(unit: Unit, tools: Tools) -> dict[str, Any]:
    """The identity of a tokenised unit, its source's bytes included."""
    return {**tools.inputs, "unit": digest_value(unit.to_json()), "raw": raw_digest(unit)}


def tokenise_unit(
    unit: Unit, folder: Path, tools: Tools, pace: Pace | None = None
) -> dict[str, Any]:
    """`done.json` of the unit: as it is when it holds, else after tokenising what is missing.

    A unit of another backend than the one asked for by name does not hold. Where fastokens
    disagrees with tokenizers, all of the unit is done with the latter.

    Raises:
        InvalidInput: a bad record under `fail`, a file that cannot be read.
        GiraffeError: a file changed while it was read, or `folder` cannot be written.
    """
    inputs = unit_inputs(unit, tools)
    done, asked = read_done(folder, inputs), tools.config.backend
    if done is not None and (asked == "auto" or done["backend"].startswith(asked)):
        return done
    with held(make_folder(folder)):
        return _tokenise_by_either(unit, folder, tools, inputs, pace)


def _tokenise_by_either(
    unit: Unit, folder: Path, tools: Tools, inputs: dict[str, Any], pace: Pace | None
) -> dict[str, Any]:
    """By the backend of `tools`, or by tokenizers where that one disagrees with it."""
    (folder / DONE).unlink(missing_ok=True)
    fallback = None
    try:
        return _tokenise(unit, folder, tools, inputs, fallback, pace)
    except Disagreement as error:
        fallback = str(error)
    slow = Tools(
        DocumentTokenizer(tools.tokenize.folder, "tokenizers", tools.config.bos, tools.config.eos),
        tools.config,
        tools.grams,
        tools.inputs,
        tools.kept,
    )
    for path in folder.iterdir():
        if path.name != LOCK:
            path.unlink()
    return _tokenise(unit, folder, slow, inputs, fallback, None)


def read_done(folder: Path, inputs: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """`done.json`, when it names these inputs and every file has its digest; else None."""
    try:
        done: dict[str, Any] = read_json(folder / DONE)
        if inputs is not None and done["inputs"] != dict(inputs):
            return None
        whole = all(digest_file(folder / name) == digest for name, digest in done["files"].items())
        return done if whole else None
    except (InvalidInput, KeyError, TypeError, AttributeError, OSError):
        return None


# ── one unit ─────────────────────────────────────────────────────────────────────────────────


def _tokenise(
    unit: Unit,
    folder: Path,
    tools: Tools,
    inputs: dict[str, Any],
    fallback: str | None,
    pace: Pace | None,
) -> dict[str, Any]:
    bad = BadRecords(tools.config.on_bad)
    writer = _UnitWriter(folder, tools, digest_value({**inputs, "backend": tools.tokenize.backend}))
    progress = _Progress(pace, unit.size)
    with (
        unchanged([unit]),
        atomic_open(folder / HELD) as held,
        contextlib.closing(writer),
    ):
        writer.held = held
        batch: list[Document] = []
        size = 0
        for document in reader_of(unit, tools.config).documents(unit, bad):
            batch.append(document)
            size += len(document.text)
            if size >= BATCH_BYTES:
                progress.advance(size, writer.add(batch))
                batch, size = [], 0
        progress.advance(size, writer.add(batch))
        writer.finish()
    progress.end()
    done = {
        "inputs": inputs,
        "backend": tools.tokenize.backend,
        "fallback": fallback,
        "dtype": np.dtype(tools.tokenize.dtype).name,
        "blocks": writer.blocks,
        "documents": writer.documents,
        "tokens": writer.tokens,
        "held": writer.held_documents,
        "held_hashes": writer.held_hashes,
        "candidate": writer.candidate,
        "skipped": bad.skipped,
        "files": writer.files | {HELD: digest_file(folder / HELD)},
    }
    write_sealed(folder / DONE, done)
    return done


class _UnitWriter:
    """Documents in, blocks out; knows which blocks an earlier process has finished."""

    held: IO[bytes]

    def __init__(self, folder: Path, tools: Tools, identity: str) -> None:
        self.folder, self.tools, self.identity = folder, tools, identity
        self.share = tools.config.hold_out
        self.blocks: list[dict[str, int]] = []
        self.files: dict[str, str] = {}
        self.documents = self.tokens = self.held_documents = 0
        self.candidate: dict[str, Any] | None = None
        """The training documents of the lowest hash, as long as none is held out."""
        self.held_hashes: list[str] = []
        self._lowest: tuple[bytes, str] | None = None
        self._finished = list(_finished_blocks(folder, identity))
        self._block, self._tokens, self._hasher = Block(), _temporary(folder), hashlib.sha256()

    def add(self, batch: list[Document]) -> int:
        """Hold out, tokenise or recognise the documents; how many tokens they gave."""
        training = [document for document in batch if not self._hold_out(document)]
        before = self.tokens
        for part in self._by_block(training):
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

    def _hold_out(self, document: Document) -> bool:
        if document.id != self.tools.kept and is_held_out(document.id, self.share):
            self.held.write(held_line(document))
            self.held_documents += 1
            self.held_hashes.append(text_hash(document.text).hex())
            self.candidate = self._lowest = None
            return True
        if not self.share or self.held_documents:
            return False
        own = rank(document.id)
        if not self._lowest or own < self._lowest:
            self._lowest = own
            self.candidate = {"id": document.id, "rank": own[0].hex(), "lines": []}
        if self.candidate and own == self._lowest:
            self.candidate["lines"].append(held_line(document).decode())
        return False

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
        stem = f"block-{number:04d}"
        if number < len(self._finished):
            tokens, index = (self._finished[number][key] for key in ("tokens", "index"))
        else:
            tokens = self._commit_tokens(f"{stem}.tokens")
            index = _write_index(self.folder / f"{stem}.npz", block)
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


def text_hash(text: str) -> bytes:
    """What tells equal texts, 16 bytes."""
    return hashlib.sha256(text.encode()).digest()[:HASH_BYTES]


def held_line(document: Document) -> bytes:
    """A document as one line of `held.jsonl`."""
    value = {"id": document.id, "text": document.text, "source": document.source}
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _temporary(folder: Path) -> IO[bytes]:
    return open(folder / "block.tokens.partial", "wb")  # noqa: SIM115 - renamed block by block


def _write_index(path: Path, block: Block) -> str:
    """The `.npz` of a block; its digest."""
    encoded = [identity.encode() for identity in block.ids]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        lengths=np.concatenate(block.lengths).astype(np.int64),
        hashes=np.frombuffer(b"".join(block.hashes), dtype=np.uint8).reshape(-1, HASH_BYTES),
        id_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        id_lengths=np.array([len(entry) for entry in encoded], dtype=np.int64),
        contaminated=np.array(block.contaminated or [False] * len(encoded), dtype=bool),
    )
    with atomic_open(path) as handle:
        handle.write(buffer.getbuffer())
    return digest_bytes(buffer.getvalue())


def _finished_blocks(folder: Path, identity: str) -> Iterator[dict[str, Any]]:
    """The blocks, from the first on, that a process which was cut off has finished."""
    for number in range(1 << 16):
        stem = f"block-{number:04d}"
        try:
            entry = read_json(folder / f"{stem}.json")
            holds = entry["identity"] == identity and all(
                digest_file(folder / f"{stem}.{suffix}") == entry[key]
                for suffix, key in (("tokens", "tokens"), ("npz", "index"))
            )
        except (InvalidInput, KeyError, TypeError, OSError):
            return
        if not holds:
            return
        with np.load(folder / f"{stem}.npz") as index:
            yield {**entry, "lengths": index["lengths"], "hashes": index["hashes"]}


class Pace:
    """Megabytes on a bar, with what a second brings; one for all units of a packing."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._started = bar, time.monotonic()
        self._megabytes = self._tokens = 0.0

    def advance(self, megabytes: float, tokens: int) -> None:
        """So much more was read, and gave so many tokens."""
        self._megabytes += megabytes
        self._tokens += tokens
        seconds = max(time.monotonic() - self._started, 1e-3)
        self._bar.advance(
            megabytes,
            **{
                "MB/s": f"{self._megabytes / seconds:.1f}",
                "tokens/s": f"{self._tokens / seconds:,.0f}",
            },
        )


class _Progress:
    """Bytes of a unit; what its size does not tell (gzip) is added at the end."""

    def __init__(self, pace: Pace | None, size: int) -> None:
        self._pace, self._left = pace, size

    def advance(self, size: int, tokens: int) -> None:
        shown = min(size, self._left)
        self._left -= shown
        if self._pace is not None:
            self._pace.advance(shown / 1e6, tokens)

    def end(self) -> None:
        if self._pace is not None and self._left:
            self._pace.advance(self._left / 1e6, 0)
