"""RULER niah_multikey_1: one of four needles in real text.

    ... One of the special magic numbers for brave-otter is: 4820193. ... for dusty-canoe is: ...

The numbers of the three other keys are the first wrong answers that the true one is ranked with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahMultikey1(NeedleTask):
    """Share of numbers found beside three others."""

    summary: ClassVar[str] = "one of four numbers hidden in real text"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needs: ClassVar[tuple[str, ...]] = ("haystack",)
    needles: ClassVar[Needles] = Needles("text", keys=4)
