"""How positions are rescaled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from giraffe_cli.config.base import AUTO, Knobs, Section


class RopeConfig(Section):
    """How positions are rescaled."""

    strategy: str = AUTO
    """Name of the strategy, see `giraffe rope list`; auto: the best of all on the training text,
    compared before anything is trained."""
    knobs: Knobs = Field(default_factory=dict)
    """Knobs of the strategy, such as `beta_fast`."""
    minutes: float | None = Field(default=None, gt=0)
    """Time limit of that comparison; default: a tenth of the predicted training time, five minutes
    where nothing is trained."""
    on_existing: Literal["refuse", "compose", "replace"] = "refuse"
    """A base that is scaled already: refuse it, scale its real table further, or put the strategy
    in the place of its scaling."""

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> RopeConfig:
        if self.strategy == AUTO and self.knobs:
            raise ValueError(
                f"knobs {', '.join(sorted(self.knobs))} need a strategy; name it, or leave them "
                "out: auto tries several"
            )
        if self.strategy != AUTO and self.minutes is not None:
            raise ValueError(f"minutes has no effect on strategy {self.strategy}, only on auto")
        return self
