"""Which token follows: the most probable one, or one that is drawn.

transformers' own warpers, in the order of its `generate`: temperature, the k most probable, the
most probable that together reach p. The same seed draws the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from giraffe_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

LEAST, MOST = 1e-4, 1e4
"""Temperatures at which the logits of a float32 stay numbers."""
Choose = Callable[["torch.Tensor"], int]
"""From float32 logits `[V]` to a token."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen."""

    temperature: float = 0.0
    """What logits are divided by; 0: the most probable token, always."""
    top_k: int = 0
    """Drawn from so many of the most probable; 0: from all."""
    top_p: float = 1.0
    """Drawn from the most probable that together have this probability."""
    seed: int = 0

    def __post_init__(self) -> None:
        is_hot = self.temperature == 0 or LEAST <= self.temperature <= MOST
        if not is_hot or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError(
                f"--temperature {self.temperature:g} --top-k {self.top_k} --top-p {self.top_p:g}",
                f"temperature is 0 or {LEAST:g} to {MOST:g}, top-k 0 or more, top-p above 0 and at "
                "most 1",
            )
        idle = [name for name in ("top_k", "top_p", "seed") if getattr(self, name) != _OFF[name]]
        if self.temperature == 0 and idle:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
            raise UsageError(f"{flags} without effect: nothing is drawn", "add --temperature 0.7")

    def chooser(self) -> Choose | None:
        """One that draws from the seed's first number on; None: nothing is drawn."""
        import torch
        from transformers.generation.logits_process import (
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        if self.temperature == 0:
            return None
        warpers = [TemperatureLogitsWarper(float(self.temperature))]
        warpers += [TopKLogitsWarper(self.top_k)] if self.top_k else []
        warpers += [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []
        generator = torch.Generator().manual_seed(self.seed)

        def choose(logits: torch.Tensor) -> int:
            scores = logits.float().cpu()[None]
            for warper in warpers:
                scores = warper(None, scores)
            return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))

        return choose


_OFF = {"top_k": 0, "top_p": 1.0, "seed": 0}
