"""Outcomes kept sample by sample, so that an evaluation resumes where it stopped.

One append-only JSONL file per subject, task and process; a line is written, flushed and fsynced
when its sample is done, with the digest of its content. A line that a kill cut short, or that the
disk changed, is ignored, and the sample is run again. Final
hidden states of `compared` examples lie in files of their own, written before the line that counts
on them: 4 bytes a number, 0.6 MB for 256 targets of a model 576 wide.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import GiraffeError
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.subject import Subject
from giraffe_cli.rundir import (
    atomic_open,
    digest_bytes,
    digest_value,
    make_folder,
    sealed,
    unsealed,
)

FORMAT = 4
"""Raised when the same example would get another outcome from newer code."""


def sample_key(subject: Subject, task: str, example: Example) -> str:
    """sha256 over all that decides the outcome: model, type, prompt, and what is asked of it."""
    return digest_value(
        {
            "format": FORMAT,
            "subject": subject.digest,
            "dtype": subject.dtype,
            "task": task,
            "example": example.key,
            "token_ids": digest_bytes(example.token_ids.astype("<i4").tobytes()),
            "num_targets": example.num_targets,
            "max_new_tokens": example.max_new_tokens,
            "candidates": example.candidates,
            "stops_at": example.answers if example.stops_when_found else (),
            **({"compared": True} if example.compared else {}),
            **({"table": "of the whole text"} if subject.table_follows_length else {}),
            **({"text": subject.text_digest} if example.max_new_tokens else {}),
        }
    )


def states_path(folder: Path, key: str) -> Path:
    """The final hidden states of the sample `key` in the cache `folder`."""
    return folder / "states" / f"{key}.npy"


def read_states(folder: Path, key: str) -> npt.NDArray[np.float32]:
    """`[num_targets, hidden_size]`, as `OutcomeCache.put` wrote them.

    Raises:
        GiraffeError: the file is missing or damaged.
    """
    path = states_path(folder, key)
    try:
        states: npt.NDArray[np.float32] = read_array(path)
    except (OSError, EOFError, ValueError) as error:
        raise GiraffeError(
            f"{path} cannot be read: {error}", "delete it and run the same command again"
        ) from error
    return states


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """`array` as numpy writes it, and the digest of that behind it."""
    stored = io.BytesIO()
    np.save(stored, array)
    with atomic_open(path) as raw:
        raw.write(stored.getvalue() + hashlib.sha256(stored.getvalue()).digest())


def read_array(path: Path) -> npt.NDArray[Any]:
    """What `write_array` wrote.

    Raises:
        OSError, EOFError, ValueError: it is missing or damaged.
    """
    data = path.read_bytes()
    stream = io.BytesIO(data)
    array: npt.NDArray[Any] = np.load(stream, allow_pickle=False)
    stated = stream.read()  # nothing in a file of an older giraffe
    if stated and stated != hashlib.sha256(data[: -len(stated)]).digest():
        raise ValueError("its digest does not fit its content")
    return array


class OutcomeCache:
    """The outcomes of one subject and task in `folder`, by `sample_key`."""

    def __init__(self, folder: Path, subject: Subject, task: str, process: int = 0) -> None:
        """Reads what all processes wrote, and writes into the file of its own."""
        stem = f"{subject.digest[:16]}-{subject.dtype}-{task}"
        self.folder = folder
        self.path = folder / (f"{stem}.{process}.jsonl" if process else f"{stem}.jsonl")
        self.known: dict[str, Outcome] = {}
        self.with_states: set[str] = set()
        for path in sorted(folder.glob(f"{glob.escape(stem)}.*jsonl")):
            for line in path.read_bytes().splitlines():
                self._remember(line)

    def get(self, key: str) -> Outcome | None:
        """The outcome stored under `key`, or None; its states stay in their file."""
        if key in self.with_states and not states_path(self.folder, key).exists():
            return None
        return self.known.get(key)

    def put(self, key: str, outcome: Outcome) -> None:
        """Store durably; a line left incomplete by a killed run is closed first."""
        entry: dict[str, Any] = {
            "key": key,
            "nll": outcome.target_nll.tolist(),
            "text": outcome.text,
            "candidate_nll": outcome.candidate_nll,
            "candidate_greedy": outcome.candidate_greedy,
        }
        if outcome.read_by:
            entry["read_by"] = outcome.read_by
        if outcome.states is not None:
            entry["states"] = True
            make_folder(self.folder / "states")
            write_array(states_path(self.folder, key), outcome.states)
            self.with_states.add(key)
        line = json.dumps(sealed(entry))
        with open(self.path, "ab+") as handle:
            handle.seek(0, os.SEEK_END)
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else "\n" + line
            handle.write(line.encode() + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        self.known[key] = dataclasses.replace(outcome, states=None)

    def _remember(self, line: bytes) -> None:
        try:
            entry: dict[str, Any] = unsealed(json.loads(line), line.decode())
            self.known[entry["key"]] = Outcome(
                np.asarray(entry["nll"], np.float64),
                str(entry["text"]),
                tuple(entry["candidate_nll"]),
                tuple(entry["candidate_greedy"]),
                read_by=str(entry.get("read_by", "")),
            )
            if entry.get("states"):
                self.with_states.add(entry["key"])
        except (ValueError, KeyError, TypeError):
            return  # half-written or damaged: counts as not there
