"""The stages of a progressive extension."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from giraffe_cli.config.base import Knobs, Length, Section


class StageConfig(Section):
    """One stage of a progressive extension; what is left out is the run's own, and a plain length
    stands for a stage that gives its target alone."""

    target_length: Length
    """The window this stage reaches, in tokens."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps; default: `train.steps`."""
    window: Length | None = None
    """Tokens in a training window; default: `train.window`, at most this stage's target."""
    windows_per_step: int | None = Field(default=None, ge=1)
    """Windows in one optimiser step."""
    positions: str | None = None
    """Position scheme; default: `train.positions`."""
    position_knobs: Knobs | None = None
    """Knobs of its position scheme; default: `train.position_knobs`, where the scheme is not chosen
    (`auto`) to be `plain`, which has none, and none beside other `positions`."""
    learning_rate: Annotated[float | None, Field(gt=0)] = None
    """Peak learning rate."""
    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "wsd"] | None = None
    """What follows warm-up."""
    data: list[str] | None = None
    """Corpora of this stage."""
    strategy: str | None = None
    """RoPE strategy of this stage."""
    knobs: Knobs | None = None
    """Knobs of the strategy; default: `rope.knobs`, or none beside a `strategy` of its own."""


def as_stage(value: Any) -> Any:
    """A plain length is a stage that gives its target alone."""
    return {"target_length": value} if isinstance(value, str | int) else value
