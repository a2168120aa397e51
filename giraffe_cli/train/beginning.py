"""What decides the weights after some steps of a training, whatever steps follow.

A checkpoint is the beginning of every training that would have taken its steps at the same learning
rates. So a run may be given more steps where its rates do not follow from their number:

    schedule     steps that stay as they are
    constant     all
    wsd          those before the decay
    cosine       those of the warm-up
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from giraffe_cli.config.train import TrainConfig, knobs_without_effect
from giraffe_cli.rundir import digest_value
from giraffe_cli.train.schedule import learning_rate

LENGTH_KNOBS = ("steps", "schedule", "decay_steps")
"""Knobs of `train` that may change where the steps that were taken stay as they are."""
_RATES_FROM = (*LENGTH_KNOBS, "learning_rate", "warmup_steps")


def beginning(identity: Mapping[str, Any], step: int, config: TrainConfig) -> dict[str, Any]:
    """The `identity` of a training under `config` (`TrainJob.identity`) as far as its first `step`
    steps go: their rates instead of what all rates follow from."""
    knobs = {name: value for name, value in identity["train"].items() if name not in _RATES_FROM}
    if is_out_of_turn(step, config):
        knobs["measured_after"] = step
    return {**identity, "train": {**knobs, "rates": digest_value(rates_before(step, config))}}


def rates_before(step: int, config: TrainConfig) -> list[float]:
    """The learning rates of the first `step` steps."""
    return [learning_rate(number, config) for number in range(step)]


def is_out_of_turn(step: int, config: TrainConfig) -> bool:
    """Whether held-out text was measured after `step` only because it was the last one, where what
    was measured decides which weights are kept or when to stop."""
    decides = "held_out_every" not in knobs_without_effect(config)
    return decides and step == config.steps and bool(step % config.held_out_every)


def shared_steps(saved: Sequence[int], before: TrainConfig, now: TrainConfig) -> int:
    """The most of the `saved` numbers of steps with which both trainings begin; 0 if none is, or if
    one lies beyond the end of the one that is asked for now."""
    if max(saved, default=0) > now.steps:
        return 0
    shared = (
        step
        for step in saved
        if rates_before(step, before) == rates_before(step, now)
        and is_out_of_turn(step, before) == is_out_of_turn(step, now)
    )
    return max(shared, default=0)
