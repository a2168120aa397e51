"""RULER niah_single_3: a UUID in real text.

    ... One of the special magic uuids for brave-otter is: 5ebed936-517e-4b17-82e1-d6effbf96321. ...

The answer is of some 35 tokens, all of which must be copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahSingle3(NeedleTask):
    """Share of UUIDs found in real text."""

    summary: ClassVar[str] = "a UUID hidden in real text"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needs: ClassVar[tuple[str, ...]] = ("haystack",)
    needles: ClassVar[Needles] = Needles("text", value_kind="uuid")
