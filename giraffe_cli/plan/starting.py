"""Where to start: window, steps and rates for a checkpoint, a target and a machine.

The recipe is that of the presets in `configs/`: on a GPU about a million tokens a step and rank 64,
on a CPU one window a step and rank 16. The window is the longest, from the target downwards by
halves, whose plan fits the memory and ends within the hours given; fewer windows a step are tried
before a shorter one. Nothing is pulled that changes what is learnt and was not asked for.

    SmolLM2-135M to 32k on 16 CPU cores, 24 hours   →   windows of 32k, 60 steps of one
    Llama-3-8B to 128k on an H100, 24 hours         →   windows of 128k, 300 steps of two
    Llama-3-8B to 512k on eight, 24 hours           →   windows of 128k under PoSE, eight a step
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.building import build
from giraffe_cli.plan.estimate import Pace, check_fits, estimate
from giraffe_cli.plan.machine import Machine
from giraffe_cli.units import format_bytes, format_length, format_seconds

SHORTEST_WINDOW = 2048
TOKENS_PER_STEP = {"cpu": 1, "cuda": 2**20}
"""Aimed at; a step has one window at least."""
RECIPES: dict[str, dict[str, Any]] = {
    "cpu": {
        "steps": 60,
        "learning_rate": 2e-4,
        "warmup_steps": 10,
        "lora": {"rank": 16, "alpha": 32},
    },
    "cuda": {
        "steps": 300,
        "learning_rate": 1e-4,
        "warmup_steps": 20,
        "lora": {"rank": 64, "alpha": 64},
    },
}
PRESETS = {"cpu": "configs/smollm2-135m-16k.yaml", "cuda": "configs/llama3-8b-64k.yaml"}
"""Whose rates these are."""


@dataclass(frozen=True)
class Start:
    """Values of a config, and why."""

    values: dict[str, Any]
    """Nested, as a YAML file would hold them."""
    estimate: dict[str, Any]
    """The plan under them."""
    reasons: dict[str, str]
    """Dotted key → a sentence about the value."""


def starting_point(
    checkpoint: Checkpoint,
    given: Mapping[str, Any],
    machine: Machine,
    pace: Pace,
    hours: float,
) -> Start:
    """`given` (at least `target_length`) with what it leaves open chosen.

    Raises:
        InvalidInput: `given` is no config.
        DoesNotFit: no window fits the machine's memory.
    """
    tried = []
    for values in _candidates(checkpoint, given, machine):
        found = estimate(checkpoint, build(values), machine, pace)
        tried.append((values, found))
        if found["fits"] and found["seconds"] <= hours * 3600:
            break
    else:
        fitting = [one for one in tried if one[1]["fits"]]
        if not fitting:
            check_fits(tried[-1][1])
        values, found = min(fitting, key=lambda one: float(one[1]["seconds"]))
    told = _reasons(checkpoint, values, found, tried[0][1], hours)
    asked = {f"train.{name}" for name in given.get("train", {})} - {"train.steps"}
    return Start(values, found, {key: why for key, why in told.items() if key not in asked})


def _candidates(
    checkpoint: Checkpoint, given: Mapping[str, Any], machine: Machine
) -> Iterator[dict[str, Any]]:
    """Configs from the longest window with most of them a step downwards; one if both are given."""
    target = build(dict(given)).target_length
    train = dict(given.get("train", {}))
    for window in [train["window"]] if "window" in train else _windows(checkpoint, target):
        counts = _counts(build({**given, "train": {**train, "window": window}}).window, machine)
        for count in [train["windows_per_step"]] if "windows_per_step" in train else counts:
            recipe = copy.deepcopy(RECIPES[machine.kind])
            chosen = {**recipe, "window": window, "windows_per_step": count, **train}
            yield {**copy.deepcopy(dict(given)), "train": chosen}


def _windows(checkpoint: Checkpoint, target: int) -> Iterator[str]:
    window, shortest = target, min(SHORTEST_WINDOW, checkpoint.native_length)
    while window >= min(shortest, target):
        yield format_length(window)
        window //= 2


def _counts(window: int, machine: Machine) -> Iterator[int]:
    """Windows a step, most first: multiples of the devices."""
    count = max(1, TOKENS_PER_STEP[machine.kind] // (window * machine.devices))
    while count >= 1:
        yield count * machine.devices
        count //= 2


def _reasons(
    checkpoint: Checkpoint,
    values: dict[str, Any],
    found: dict[str, Any],
    full: dict[str, Any],
    hours: float,
) -> dict[str, str]:
    config = build(values)
    kind = found["machine"]["kind"]
    return {
        "target_length": (
            f"{config.target_length / checkpoint.native_length:.3g} times the native window of "
            f"{format_length(checkpoint.native_length)}"
        ),
        "dtype": f"stored as {checkpoint.dtype}, computed here as {found['dtype']}",
        "train.steps": (
            f"{format_length(found['trained_tokens'])} tokens in all, predicted "
            f"{format_seconds(found['seconds'])} ({found['pace']['source']})"
        ),
        "train.window": _about_window(config.window, config.target_length, full, hours),
        "train.learning_rate": f"that of {PRESETS[kind]}",
        "train.checkpointing": (
            f"auto takes `{found['levers']['checkpointing']}` here, peak "
            f"{format_bytes(found['bytes']['total'])} of "
            f"{format_bytes(found['machine']['memory_bytes'])} (predicted)"
        ),
    }


def _about_window(window: int, target: int, full: dict[str, Any], hours: float) -> str:
    """Why it is the target, or less."""
    if window == target:
        return "the whole target: nothing about far text is left to skipped positions"
    needs = f"{format_bytes(full['bytes']['total'])}, {format_seconds(full['seconds'])}"
    why = "do not fit" if not full["fits"] else f"take longer than {hours:g} hours"
    return f"shorter than the target, so positions skip (PoSE); full windows {why} ({needs})"
