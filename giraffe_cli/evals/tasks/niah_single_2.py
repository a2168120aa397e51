"""RULER niah_single_2: a number in real text.

    ... the end of a sentence. One of the special magic numbers for brave-otter is: 4820193. She ...

As `niah`, but each sample has one needle at a place of its own, and 128 tokens to answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahSingle2(NeedleTask):
    """Share of numbers found in real text."""

    summary: ClassVar[str] = "a number hidden in real text"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needs: ClassVar[tuple[str, ...]] = ("haystack",)
    needles: ClassVar[Needles] = Needles("text")
