"""What the benchmarks share: cells in fresh processes, remembered once they are finished.

A cell is a JSON object that says what is measured. It runs as `python SCRIPT --cell JSON`, prints
its figures as the last line, and is appended to a JSONL file, so that a benchmark that was stopped
goes on where it was. A finished cell counts for as long as the code it measured is the same:
`revision` is part of its key.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHARES = (0.24, 0.20, 0.16, 0.13, 0.11, 0.09, 0.07)
"""Seven documents of unequal length in one window, the longest first; Σ share² = 0.165."""
THREADS = os.environ.get("OMP_NUM_THREADS", "1")
ENVIRONMENT = {
    "OMP_NUM_THREADS": THREADS,
    "OMP_WAIT_POLICY": "passive",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


D256: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
"""A small model, without its vocabulary."""
SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
"""SmolLM2-135M's shape."""


def document_lengths(documents: str, length: int) -> list[int]:
    """`one`: the window is one document; `packed`: seven, as `SHARES` says."""
    if documents == "one":
        return [length]
    rest = [int(share * length) for share in SHARES[1:]]
    return [length - sum(rest), *rest]


def row_of(pieces: list[list[int]]) -> dict[str, list[int]]:
    """What the Trainer is given of documents: the first token of each is no target, and several
    show by restarting positions."""
    row = {
        "input_ids": [token for piece in pieces for token in piece],
        "labels": [label for piece in pieces for label in (-100, *piece[1:])],
    }
    if len(pieces) > 1:
        row["position_ids"] = [place for piece in pieces for place in range(len(piece))]
    return row


def squared_share(lengths: list[int]) -> float:
    """s² = Σ l² / S²: the part of full attention that documents leave over."""
    return sum(length**2 for length in lengths) / sum(lengths) ** 2


def revision(*paths: Path) -> str:
    """Digest of the sources below `paths`."""
    found = hashlib.sha256()
    for path in paths:
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(source.read_bytes())
    return found.hexdigest()[:12]


class Ledger:
    """Finished cells, one JSON object a line; what stands there is not measured again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        self._found = {_key(row["cell"]): row["found"] for row in rows}

    def get(self, cell: dict[str, Any]) -> dict[str, Any] | None:
        return self._found.get(_key(cell))

    def add(self, cell: dict[str, Any], found: dict[str, Any]) -> None:
        self._found[_key(cell)] = found
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps({"cell": cell, "found": found}) + "\n")


def run_cell(python: str, script: str, cell: dict[str, Any], **environment: str) -> dict[str, Any]:
    """A fresh process, because a peak resident size never falls; its last line is the answer."""
    done = subprocess.run(
        [python, script, "--cell", json.dumps(cell)],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, **environment},
    )
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:])
        raise SystemExit(f"cell {json.dumps(cell)} ended with {done.returncode}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def peak_bytes() -> int:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def goal(found: float, allowed: float) -> dict[str, Any]:
    """A ratio that may be `allowed` at most."""
    return {"found": found, "allowed": allowed, "ok": found <= allowed}


def finish(result: dict[str, Any], goals: dict[str, dict[str, Any]], out: Path | None) -> int:
    """Print `result`, write it to `out` as well; 1 when a goal is missed."""
    text = json.dumps(result, indent=2)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0 if all(one["ok"] for one in goals.values()) else 1


def surroundings() -> dict[str, Any]:
    """What times depend on besides what is measured."""
    return {"machine": platform.machine(), "load": os.getloadavg()[0]}


def add_cell_options(parser: argparse.ArgumentParser) -> None:
    """Options of every benchmark that measures cells; `--cell` is what a fresh process gets."""
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes a cell")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--cell", help=argparse.SUPPRESS)


def _key(cell: dict[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
