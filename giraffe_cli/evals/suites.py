"""Which tasks, how many samples: three sizes of the same evaluation.

quick answers in minutes on a CPU whether an extension works at all; standard has samples enough
for a claim; full adds what is slow (sliding windows) or hard for small models. Whatever is given
by name (`--tasks`, `--set niah.samples=5`, `--documents`) stands over the suite. Of `lambada` and
`hellaswag`, which need a data file each, a suite runs those whose file is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Suite:
    """Names of tasks, held-out documents, and knobs by task."""

    tasks: tuple[str, ...]
    documents: int
    knobs: dict[str, dict[str, Any]] = field(default_factory=dict)


_RULER = (
    "niah-single-1",
    "niah-single-2",
    "niah-single-3",
    "niah-multikey-1",
    "niah-multikey-2",
    "niah-multikey-3",
    "niah-multivalue",
    "niah-multiquery",
    "vt",
)
_SHORT = ("short", "lambada", "hellaswag")
SUITES = {
    "quick": Suite(
        ("nll", "positions", "passkey", "niah"),
        8,
        {
            "nll": {"anchors": 1},
            "passkey": {"depths": 5, "trials": 2},
            "niah": {"depths": 3, "samples": 4},
        },
    ),
    "standard": Suite(
        ("nll", "positions", "longppl", "passkey", "niah", "lines", "kv", *_RULER, *_SHORT),
        17,
        {
            "nll": {"anchors": 4},
            "passkey": {"trials": 4},
            "niah": {"samples": 10},
            "lines": {"samples": 10},
            "kv": {"samples": 10},
        },
    ),
    "full": Suite(
        (
            *("nll", "positions", "sliding", "longppl", "passkey", "niah", "lines", "kv"),
            *(*_RULER, *_SHORT),
        ),
        64,
        {
            "nll": {"anchors": 6},
            "passkey": {"trials": 10},
            "niah": {"samples": 30},
            "lambada": {"samples": 5153},
            "hellaswag": {"samples": 10042},
        },
    ),
}
