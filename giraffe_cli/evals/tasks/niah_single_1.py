"""RULER niah_single_1: a number in noise.

    The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.
    One of the special magic numbers for brave-otter is: 4820193.
    The grass is green. ...

Near to `passkey`; it saturates as early.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahSingle1(NeedleTask):
    """Share of numbers found in noise."""

    summary: ClassVar[str] = "a number hidden in noise"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needles: ClassVar[Needles] = Needles("noise")
