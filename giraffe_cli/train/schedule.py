"""The learning rate as a function of the step alone, so that a resumed run needs no state for it.

Steps count from 0; with peak 1, 10 warm-up steps and 100 steps in all:

    step        0     9    10    55    80    90    99
    cosine    0.1     1     1  0.55  0.21  0.13  0.10
    constant  0.1     1     1     1     1     1     1
    wsd       0.1     1     1     1     1   0.5  0.05    (20 steps of decay)
"""

from __future__ import annotations

import math

from giraffe_cli.config.train import TrainConfig

COSINE_FLOOR = 0.1
"""Share of the peak that the cosine tends to."""


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of `step` (from 0), as `train.schedule` says."""
    return config.learning_rate * _warm_up(step, config) * _after_warm_up(step, config)


def decay_steps(config: TrainConfig) -> int:
    """Steps of the linear decay at the end; 0 unless the schedule is `wsd`."""
    if config.schedule != "wsd":
        return 0
    return config.decay_steps or max(1, config.steps // 5)


def _warm_up(step: int, config: TrainConfig) -> float:
    return min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0


def _after_warm_up(step: int, config: TrainConfig) -> float:
    if config.schedule == "wsd":
        return min(1.0, (config.steps - step) / decay_steps(config))
    if config.schedule == "cosine" and step >= config.warmup_steps:
        progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
        wave = 0.5 * (1 + math.cos(math.pi * progress))
        return COSINE_FLOOR + (1 - COSINE_FLOOR) * wave
    return 1.0
