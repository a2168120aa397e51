"""RULER niah_multiquery: the numbers of four keys in real text, all are wanted.

... One of the special magic numbers for brave-otter is: 4820193. ... for dusty-canoe is: ...
What are all the special magic numbers for brave-otter, dusty-canoe, civil-raven, and ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL_OF_SEVERAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahMultiquery(NeedleTask):
    """Share of the four numbers found."""

    summary: ClassVar[str] = "the numbers of four keys hidden in real text"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL_OF_SEVERAL
    needs: ClassVar[tuple[str, ...]] = ("haystack",)
    needles: ClassVar[Needles] = Needles("text", keys=4, asked=4)
