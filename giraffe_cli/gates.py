"""Quality gates: thresholds tested against an interval's bound, never against the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_LOSS_RISE = 0.05
"""Nats: what the long end and the short end may lose before a run is called out."""


@dataclass(frozen=True)
class Gate:
    """One tested claim."""

    name: str
    """The path of the score, such as `nll@16384-nll@1024`."""
    bound: float
    """The upper 95 % bound that was tested."""
    threshold: float
    ok: bool

    @property
    def sentence(self) -> str:
        """`nll@16384-nll@1024: upper bound +0.012 (needs <= +0.050)`."""
        return f"{self.name}: upper bound {self.bound:+.3f} (needs <= {self.threshold:+.3f})"


def at_most(name: str, score: dict[str, Any], threshold: float) -> Gate:
    """A gate that the whole interval of `score` lies at or below `threshold`."""
    return Gate(name, score["ci_high"], threshold, score["ci_high"] <= threshold)


def default_gates(results: dict[str, Any], native_length: int, target_length: int) -> list[Gate]:
    """Long context costs nothing against short, and short context kept, where both were scored."""
    gates = []
    nested = results.get("paired", {}).get("nll", {}).get("length_minus_native", {})
    long_end = nested.get("checkpoint", {}).get(str(target_length))
    if long_end:
        gates.append(at_most(f"nll@{target_length}-nll@{native_length}", long_end, MAX_LOSS_RISE))
    short = results.get("short_context", {}).get("delta_nll")
    if short:
        gates.append(at_most("short_context.delta_nll", short, MAX_LOSS_RISE))
    return gates
