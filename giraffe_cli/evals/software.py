"""What computes scores here, and what computed those that an evaluation found in its cache.

Other versions, devices and chunks round otherwise: scores that were read under several are told
apart in `results.json`, and a warning says so. What is cached stays: reading again is the user's to
decide.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import giraffe_cli

if TYPE_CHECKING:
    from giraffe_cli.evals.results import Sample

NOT_RECORDED = "not recorded"
"""Of scores that an earlier giraffe has cached."""


def versions() -> dict[str, str]:
    """What runs here."""
    import torch
    import transformers

    return {
        "giraffe": giraffe_cli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def reader_here(chunk: int) -> str:
    """`torch 2.13.0, transformers 5.24.0, cpu, 256 tokens at a time`: what bits depend on."""
    here = versions()
    parts = [f"{name} {here[name]}" for name in ("torch", "transformers")]
    return ", ".join([*parts, here["device"], f"{chunk} tokens at a time"])


def readers(samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    """Subject → what read it → samples."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        found[sample.subject][sample.outcome.read_by or NOT_RECORDED] += 1
    return {subject: dict(sorted(counts.items())) for subject, counts in found.items()}


def read_otherwise(found: dict[str, dict[str, int]], here: str, cache: Path) -> list[str]:
    """A warning for every reader but `here` and those that are not recorded."""
    return [
        f"{subject}: {count} of {sum(counts.values())} samples were read earlier by {reader}, here "
        f"it is {here}; without {cache} all are read again"
        for subject, counts in found.items()
        for reader, count in counts.items()
        if reader not in (here, NOT_RECORDED)
    ]
