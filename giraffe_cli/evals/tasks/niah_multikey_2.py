"""RULER niah_multikey_2: one needle among needles.

    One of the special magic numbers for dusty-canoe is: 7203345.
    One of the special magic numbers for brave-otter is: 4820193.
    One of the special magic numbers for civil-raven is: 1190024.

Where whole needles leave more than 3 % of a short length empty, sentences of noise follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahMultikey2(NeedleTask):
    """Share of numbers found among numbers."""

    summary: ClassVar[str] = "one number among many of other keys"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needles: ClassVar[Needles] = Needles("needles")
