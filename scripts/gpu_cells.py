"""Cells of `bench_gpu.py` by name, and the fresh process that each of them runs in.

    8b/32k/one/ours:checkpointing=attention,offload=host
    8b/32k/packed/trl:checkpointing=selective,kernel=cudnn
    ceilings

Shape, length of the window, documents (`one`, or `packed`: four of equal length, s² = 0.25), who
trains, and settings. The process of the next cell starts while a cell is measured: it imports, and
waits for its cell on stdin. A cell that runs out of memory or time, or breaks, is a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

SHAPES = {"8b": "llama3-8b", "1b": "llama3.2-1b", "tiny": "tiny"}
PEERS = ("hf", "trl")
PATHS = ("ours", *PEERS, "ceilings")
PACKED = 4
WARM = 32768
"""Tokens up to which the step before the timed ones is a whole one; beyond, it goes through two
layers, which loads every kernel at its size."""
TIMED = ((8192, 3), (32768, 2), (1 << 60, 1))
"""Timed steps of windows up to so many tokens."""


@dataclass(frozen=True)
class Cell:
    """What one process measures."""

    shape: str
    length: int
    documents: str
    path: str
    settings: dict[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str) -> Cell:
        """The inverse of `name`.

        Raises:
            ValueError: a part is missing or unknown.
        """
        from giraffe_cli.units import parse_length

        place, _, given = name.partition(":")
        settings = dict(one.split("=", 1) for one in given.split(",") if one)
        if place == "ceilings":
            return cls("", 0, "", place, settings)
        shape, length, documents, path = place.split("/")
        if shape not in SHAPES or documents not in ("one", "packed") or path not in PATHS:
            raise ValueError(f"no cell `{name}`: {list(SHAPES)}/LENGTH/one|packed/{list(PATHS)}")
        return cls(shape, parse_length(length), documents, path, settings)

    @property
    def name(self) -> str:
        """As `named` reads it."""
        given = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return self.place + (f":{given}" if given else "")

    @property
    def place(self) -> str:
        """The name without settings."""
        if self.path == "ceilings":
            return self.path
        return f"{self.work}/{self.path}"

    @property
    def work(self) -> str:
        """What every path of the same work shares."""
        from giraffe_cli.units import format_length

        return f"{self.shape}/{format_length(self.length)}/{self.documents}"

    @property
    def seq_lengths(self) -> list[int]:
        """Tokens of each document."""
        return document_lengths(self.documents, self.length)

    @property
    def timed(self) -> int:
        """Steps that are timed."""
        usual = next(steps for most, steps in TIMED if self.length <= most)
        return int(self.settings.get("steps", usual))

    @property
    def warm(self) -> int:
        """Layers of the step before them; 0: all."""
        return int(self.settings.get("warm", 0 if self.length <= WARM else 2))


def document_lengths(documents: str, length: int) -> list[int]:
    """`one`, or `PACKED` of equal length."""
    if documents == "one":
        return [length]
    each = length // PACKED
    return [length - (PACKED - 1) * each, *[each] * (PACKED - 1)]


class Process:
    """A process that imports what `path` needs and then measures one cell."""

    def __init__(self, script: str, path: str, device: str, alloc: str) -> None:
        self.path, self.device = path, device
        # files, not pipes: what a compiler leaves running would keep a pipe open
        self.told = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "8" if device == "cuda" else "1"),
            **({"PYTORCH_ALLOC_CONF": alloc} if alloc else {}),
            **({} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
        }
        self.process = subprocess.Popen(
            [sys.executable, script, "--worker", path, "--device", device],
            stdin=subprocess.PIPE,
            stdout=self.said,
            stderr=self.told,
            text=True,
            env=environment,
            process_group=0,
        )

    def measure(self, cell: Cell, limit: float) -> dict[str, Any]:
        """The cell's figures; `outcome` is `ok`, `oom`, `timeout` or `failed`."""
        started = time.monotonic()
        try:
            self.process.communicate(json.dumps({"cell": cell.name}) + "\n", limit)
        except subprocess.TimeoutExpired:
            return {"outcome": "timeout", "spent": time.monotonic() - started}
        finally:
            self.stop()
        spent, lines = time.monotonic() - started, _read(self.said).splitlines()
        if self.process.returncode or not lines:
            told = {"told": _read(self.told)[-3000:], "returned": self.process.returncode}
            return {"outcome": "failed", "spent": spent, **told}
        return {**json.loads(lines[-1]), "spent": spent}

    def stop(self) -> None:
        """End the process and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _read(file: Any) -> str:
    file.seek(0)
    return str(file.read())
