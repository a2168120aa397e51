"""Dynamic NTK, frozen at the target: the base that the growing rule reaches there.

    base' = base · (f · T/L0 - (f - 1))^(d/(d-2))          f = s unless given

The rule of transformers' `dynamic` grows the base with the text; at its full length it is this
one. Frozen, it is written as an ordinary `rope_theta`: `rope_type: dynamic` itself takes the native
window from `max_position_embeddings`, so a config that names the target there never scales, and a
table that moves under a KV cache spoils what the cache holds.

base 1e4, d = 128, s = f = 4: base' = 1e4 · 13^(128/126) = 135402, that is NTK with α = 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head
from giraffe_cli.rope.knobs import knob


@final
@dataclass(frozen=True)
class Dynamic(AbstractStrategy):
    """base · (f·T/L0 - (f-1))^(d/(d-2))."""

    summary = "the table dynamic NTK reaches at the target, as a plain rope_theta"
    source = "emozilla 2023; jquesnelle/yarn; Giraffe modeling_giraffe; transformers `dynamic`"
    choose_when = "replacing a `dynamic` config by one that does not change with the length"

    factor: float = knob(
        0.0,
        "f of the rule, `factor` of a dynamic config; 0 means target/native",
        1,
        1e6,
        or_zero=True,
    )

    def theta_ratio(self, head: Head) -> float:
        """base'/base."""
        factor = self.factor or head.factor
        alpha = factor * head.factor - (factor - 1)
        return float(alpha ** (head.head_dim / (head.head_dim - 2)))

    def inv_freq(self, head: Head) -> FloatArray:
        return np.asarray(
            head.base_inv_freq() * self.theta_ratio(head) ** -head.exponents(), dtype=np.float64
        )

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "default", "rope_theta": head.rope_theta * self.theta_ratio(head)}
