"""LongRoPE: a divisor for each pair, found by search and given as numbers or as a file.

    θ'_i = θ_i / factors_i
    cos and sin times √(1 + ln s / ln L0), unless `attention` or the file gives another number

`factors` is a list of head_dim/2 numbers, or a file: a JSON list; a JSON object with `long_factor`,
at its top or in `rope_parameters` or `rope_scaling` (a `config.json` is one); or numbers between
commas and whitespace, where LongRoPE's own files repeat one row for each layer. The file is read
once, and the numbers are what `rope.json` records. L0 = 4096: s = 4 gives 1.080123, s = 8 1.118034.

Short texts get the same divisors: a table that switches at L0 spoils a KV cache that crosses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob
from giraffe_cli.rope.strategies._factors import read_factors
from giraffe_cli.rope.strategies._ramp import ramp, ramp_ends

GIVE = (
    "give factors: a list of head_dim/2 numbers, or a file (JSON list, config.json with "
    "long_factor, CSV)"
)


@final
@dataclass(frozen=True)
class Longrope(AbstractStrategy):
    """Given divisors, pair by pair.

    Raises:
        InvalidInput: no factors, or a file that cannot be read as such.
    """

    summary = "divides each pair by a number of its own, from a search or a published model"
    source = "Ding et al. 2024, arXiv 2402.13753; microsoft/LongRoPE; transformers `longrope`"
    choose_when = "you have factors that were searched for this base and this target"
    starts_at_identity = False

    factors: tuple[float, ...] = knob(
        (), "divisors, fastest pair first: head_dim/2 numbers, or the path of a file", 0.1, 1e12
    )
    attention: float = knob(
        0.0,
        "cos and sin are multiplied by this; 0 means the file's attention_factor, else "
        "√(1 + ln s / ln L0)",
        0.1,
        10,
        or_zero=True,
    )

    def __post_init__(self) -> None:
        given: Any = self.factors
        if isinstance(given, str) and given:
            published = read_factors(Path(given).expanduser())
            object.__setattr__(self, "factors", published.factors)
            object.__setattr__(self, "attention", self.attention or published.attention)
        super().__post_init__()
        if not self.factors:
            raise InvalidInput("longrope has no factors", GIVE)
        object.__setattr__(self, "factors", tuple(float(factor) for factor in self.factors))

    @classmethod
    def example(cls, head: Head) -> dict[str, Any]:
        """YaRN's ramp between divisors of 1 and s: where LongRoPE's search starts."""
        divided = ramp(head, *ramp_ends(head, 32.0, 1.0))
        return {"factors": (1 - divided + head.factor * divided).tolist()}

    def inv_freq(self, head: Head) -> FloatArray:
        """`[head_dim/2]` divided inverse frequencies.

        Raises:
            InvalidInput: another number of factors than pairs, or factors that make a pair turn
                faster than the one before it, as a list in the wrong order does.
        """
        pairs = head.head_dim // 2
        if len(self.factors) != pairs:
            raise InvalidInput(
                f"longrope has {len(self.factors)} factors, needs head_dim/2 = {pairs}",
                "factors belong to one model: take those that were searched for this one",
            )
        table: FloatArray = head.base_inv_freq() / np.array(self.factors)
        faster = np.flatnonzero(np.diff(table) > 0)
        if faster.size:
            at = int(faster[0])
            raise InvalidInput(
                f"factors {self.factors[at]:g}, {self.factors[at + 1]:g} make pair {at + 1} turn "
                f"faster than pair {at}",
                "factors are divisors, fastest pair first",
            )
        return table

    def attention_factor(self, head: Head) -> float:
        if self.attention or head.factor <= 1:
            return float(self.attention or 1.0)
        window = head.original_max_position_embeddings
        return math.sqrt(1 + math.log(head.factor) / math.log(window))
