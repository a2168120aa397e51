"""No scaling: the base's own table, as a control.

    θ'_i = θ_i

What a base loses beyond its window, and what fine-tuning alone gives, is measured with this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from giraffe_cli.rope.base import AbstractStrategy, FloatArray, Head


@final
@dataclass(frozen=True)
class Unscaled(AbstractStrategy):
    """The base's table at the target length."""

    summary = "leaves every frequency as it is"
    source = "Su et al. 2021, arXiv 2104.09864"
    choose_when = "as a control: what the other strategies are worth, and what training alone gives"

    def inv_freq(self, head: Head) -> FloatArray:
        return head.base_inv_freq()

    def native(self, head: Head) -> dict[str, Any]:
        return {"rope_type": "default"}
