"""RULER niah_multikey_3: one needle among needles, UUIDs for UUIDs.

    One of the special magic uuids for f2c0f080-0502-... is: 03dd5664-f32d-4000-...

The hardest of the eight. Where whole needles (about 85 tokens) leave more than 3 % of a short
length empty, sentences of noise follow them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from giraffe_cli.evals.measures import RETRIEVAL, Measure
from giraffe_cli.evals.needles import Needles, NeedleTask


@dataclass(frozen=True)
class NiahMultikey3(NeedleTask):
    """Share of UUIDs found among UUIDs."""

    summary: ClassVar[str] = "one UUID among many, each the key of another"
    measures: ClassVar[Mapping[str, Measure]] = RETRIEVAL
    needles: ClassVar[Needles] = Needles("needles", key_kind="uuid", value_kind="uuid")
