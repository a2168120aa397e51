"""Reading and answering on this machine's CPU, timed on random weights of the model's widths.

A chunk through a few layers, one token through them, attention to a past, and the unpacking of
kept numbers: a second or two of the code that `giraffe generate` runs.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.model.key_values import KeyValues
from giraffe_cli.model.loading import torch_dtype
from giraffe_cli.model.past import whole
from giraffe_cli.model.reading import PROMPT_CHUNKS, feed
from giraffe_cli.model.stored import PIECES
from giraffe_cli.plan.inference import InferencePace, assumed_inference_pace
from giraffe_cli.plan.inference_memory import DTYPE_BYTES, formats
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.operations import forward_per_token, linear_shapes
from giraffe_cli.plan.trial import random_model, trial_seconds

MEASURED = "measured on this machine"
TRIAL_BYTES = 1e8
"""Of the layers that a single token meets: more than a CPU's cache holds."""
OPERATIONS = 4e10
"""Of a timed chunk at most."""


def inference_pace_of(machine: Machine, shape: Checkpoint, dtype: str) -> InferencePace:
    """What `machine` sustains: measured where it is this CPU, assumed of any other and of GPUs."""
    if machine.kind != "cpu" or machine.name:
        return assumed_inference_pace(machine, dtype)
    with torch.inference_mode():
        linear, weight_bytes = _through_layers(shape, dtype)
        attention, number_seconds = _to_a_past(shape, dtype)
        unpacking = _unpacking(shape, dtype)
    return InferencePace(
        linear=linear,
        attention=attention,
        weight_bytes=weight_bytes,
        number_seconds=number_seconds,
        unpack_seconds={**unpacking, dtype: 0.0},
        layer_seconds=0.0,
        is_measured=True,
        source=MEASURED,
    )


def _through_layers(shape: Checkpoint, dtype: str) -> tuple[float, float]:
    """Operations a second of a chunk, bytes a second of one token."""
    weights = sum(inputs * outputs for inputs, outputs in linear_shapes(shape).values())
    size = weights * DTYPE_BYTES[dtype]
    layers = max(1, min(shape.num_layers, round(TRIAL_BYTES / size)))
    model = random_model(replace(shape, num_layers=layers), dtype).eval()
    chunk = max(16, min(PROMPT_CHUNKS["cpu"], int(OPERATIONS / (2 * weights * layers))))
    run = partial(feed, model, kept=None)
    read = trial_seconds(lambda: run([0] * chunk))
    one = trial_seconds(lambda: feed(model, [0], KeyValues(layers)))
    per_token = forward_per_token(replace(shape, num_layers=layers), chunk)
    return chunk * (per_token.linear + per_token.attention) / read, layers * size / one


def _to_a_past(shape: Checkpoint, dtype: str) -> tuple[float, float]:
    """Operations a second of many queries, seconds a number of one query over a past so long that
    it comes from memory: twice those of one that a CPU's cache holds."""
    heads, width = shape.num_attention_heads, shape.head_dim
    past, chunk = PIECES["cpu"], PROMPT_CHUNKS["cpu"]
    numbers = int(TRIAL_BYTES / 2 / DTYPE_BYTES[dtype])
    tokens = max(past, numbers // (2 * shape.num_key_value_heads * width))
    keys, values = (_random(shape.num_key_value_heads, tokens, width, dtype) for _ in range(2))
    many, one = _random(heads, chunk, width, dtype), _random(heads, 1, width, dtype)
    some = keys[:, :, :past].contiguous(), values[:, :, :past].contiguous()
    seconds = trial_seconds(lambda: whole(many, *some, None))
    alone = trial_seconds(lambda: whole(one, keys, values, None))
    return 4.0 * heads * width * chunk * past / seconds, alone / (keys.numel() + values.numel())


def _unpacking(shape: Checkpoint, dtype: str) -> dict[str, float]:
    """Seconds a number, by how it is kept."""
    past = PIECES["cpu"]
    keys, values = (
        _random(shape.num_key_value_heads, past, shape.head_dim, dtype) for _ in range(2)
    )
    found = {}
    for name, form in formats(dtype).items():
        parts = form.write(keys, values)
        seconds = trial_seconds(partial(form.read, parts, torch_dtype(dtype)))
        found[name] = seconds / (keys.numel() + values.numel())
    return found


def _random(heads: int, tokens: int, width: int, dtype: str) -> torch.Tensor:
    return torch.randn(1, heads, tokens, width, dtype=torch_dtype(dtype))
