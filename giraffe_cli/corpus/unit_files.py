"""The folder of a tokenised unit: its files, and whether they hold.

    work/unit-00012/block-0000.tokens   ids of whole documents end to end, little-endian
                    block-0000.npz      about each document: tokens, hash of the text, id, flags
                    block-0000.json     digests of the two: the block counts from here on
                    held.jsonl          documents kept out of training, not tokenised
                    candidate.jsonl     while there are none, those that would be the first
                    done.json           written last: inputs and the digest of every file

Until `done.json` is there, the blocks whose digests hold are what a unit that was cut off has.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.corpus.duplicates import HASH_BYTES
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rundir import atomic_open, digest_bytes, digest_file, read_json

DONE, HELD, CANDIDATE = "done.json", "held.jsonl", "candidate.jsonl"


def unit_folder(work: Path, number: int) -> Path:
    """`work/unit-00012`."""
    return work / f"unit-{number:05d}"


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


@dataclass
class Block:
    """Documents that wait to be written together."""

    ids: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    lengths: list[Any] = field(default_factory=list)
    """One array of token counts a batch."""
    contaminated: list[bool] = field(default_factory=list)
    text_bytes: int = 0


def block_stem(number: int) -> str:
    """`block-0000`: what a block's three files are called, without their suffixes."""
    return f"block-{number:04d}"


def write_index(path: Path, block: Block) -> str:
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


def has_blocks(folder: Path) -> bool:
    """Whether a unit that is not finished has a block that is."""
    return (folder / f"{block_stem(0)}.json").exists()


def finished_blocks(folder: Path, identity: str) -> Iterator[dict[str, Any]]:
    """The blocks, from the first on, that a process which was cut off has finished."""
    for number in range(1 << 16):
        stem = block_stem(number)
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
