"""A trial step on this machine: one layer, one attention and one block of logits, timed apart.

A few seconds of the real code on random weights of the model's own widths tell what the machine
sustains in products, in attention and in the head; a step is the sum of their operations at these
rates. Timed is CPU time over the threads in use, so that other work on the machine does not count;
on a GPU the time until its work is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from giraffe_cli.checkpoint import Checkpoint
from giraffe_cli.config.building import resolve_dtype
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.fused import FusedLayer, why_not_fused
from giraffe_cli.model.kernels import KERNELS, Kernels
from giraffe_cli.model.layer_base import Attending
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import torch_dtype
from giraffe_cli.model.loss import chunked_nll
from giraffe_cli.model.plain import PlainLayer
from giraffe_cli.model.probe import AttentionShape, probe, settle
from giraffe_cli.model.stack import run_layers
from giraffe_cli.model.trainable import causal_model, make_trainable
from giraffe_cli.plan.estimate import Pace, assumed_pace
from giraffe_cli.plan.machine import Machine
from giraffe_cli.plan.operations import Rates, forward_per_token, step_per_token
from giraffe_cli.plan.settings import CHUNKS, TILES

CPU = torch.device("cpu")
GPU_REPEATS = 10
TRIAL = "measured by a trial step on this machine"
MOST_OPERATIONS = {"cpu": 4e10, "cuda": 4e13}
"""Of each part, so that a trial takes seconds on two cores, and a tenth of one on a GPU."""
MOST_TOKENS = {"cpu": 1024, "cuda": 8192}


def pace_of(machine: Machine, shape: Checkpoint, config: ExtendConfig) -> Pace:
    """What `machine` sustains: measured where it is this one and would train, else assumed."""
    dtype = resolve_dtype(config.dtype, shape.dtype, machine.has_bfloat16)
    if machine.name or not config.trains:
        return assumed_pace(machine, dtype)
    device = torch.device(machine.kind)
    return Pace(trial_step(shape, config.train, dtype, config.window, device), True, TRIAL)


def trial_step(
    shape: Checkpoint,
    train: TrainConfig,
    dtype: str,
    window: int,
    device: torch.device = CPU,
) -> Rates:
    """Operations a second that `device` sustains on a model of `shape`, in float32 or bfloat16 as
    `dtype` says. A base in 4 bits is taken for one in `dtype`.

    Raises:
        InvalidInput: the GPU has no usable attention kernel.
    """
    kernels = packed = None
    if device.type == "cpu":
        attention = _attention_rate(shape, dtype, window)
    else:
        heads = AttentionShape(shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
        probed = probe(heads, torch_dtype(dtype), window, device, train.attention_kernel)
        kernels, _told = settle(train.attention_kernel, probed)
        speed = {KERNELS[one.name]: 1e12 * one.teraflops for one in probed}
        attention, packed = speed[type(kernels.one)], speed[type(kernels.several)]
    head = _head_rate(shape, dtype, window, device)
    linear = _linear_rate(shape, train, dtype, window, attention, device, kernels)
    return Rates(linear, attention, head, packed)


def _linear_rate(
    shape: Checkpoint,
    train: TrainConfig,
    dtype: str,
    window: int,
    attention: float,
    device: torch.device,
    kernels: Kernels | None,
) -> float:
    """Of a layer with its adapters, forward, recomputed and back, but for its attention."""
    tile = TILES[device.type]
    plain = train.model_copy(update={"quantize_base": "none", "loss": "ce"})
    one_layer = _one_layer(shape)
    about = step_per_token(one_layer, plain, 1, Levers("attention", mlp_tile=tile)).linear
    tokens = _affordable(about, window, device)
    model = causal_model(
        make_trainable(
            random_model(one_layer, "float32" if plain.method == "full" else dtype),
            plain,
            torch_dtype(dtype),
            seed=0,
        )
    ).train()
    model.to(device)
    plain_layers = list(model.model.layers)
    is_fused = train.fused_layers != "off" and not why_not_fused(plain_layers)
    levers = Levers("attention", mlp_tile=tile, fused=is_fused)
    per_token = step_per_token(one_layer, plain, 1, levers).linear
    kind = FusedLayer if is_fused else PlainLayer
    layers = [kind(layer) for layer in plain_layers]
    hidden = torch.randn(1, tokens, shape.hidden_size, dtype=torch_dtype(dtype), device=device)
    positions = torch.arange(tokens, device=device)[None]
    rotary = model.model.rotary_emb(hidden, position_ids=positions)
    settings = {"cu_seqlens": torch.tensor([0, tokens], dtype=torch.int32), "kernels": kernels}
    is_half = dtype == "bfloat16"

    def step() -> None:
        out = run_layers(
            layers,
            hidden.clone().requires_grad_(),
            Attending(rotary, settings),
            levers,
            lambda: torch.autocast(device.type, torch.bfloat16, enabled=is_half),
        )
        torch.autograd.backward(out, torch.ones_like(out))

    of_attention = step_per_token(one_layer, plain, tokens, levers).attention * tokens
    seconds = max(trial_seconds(step, device=device) - of_attention / attention, 1e-9)
    return per_token * tokens / seconds


def _attention_rate(shape: Checkpoint, dtype: str, window: int) -> float:
    """Causal attention over up to 2,048 tokens, forward and back."""
    width = shape.num_attention_heads * shape.head_dim
    tokens = min(window, 2048, max(64, int((MOST_OPERATIONS["cpu"] / (7 * width)) ** 0.5)))
    query, key, value = (
        torch.randn(1, heads, tokens, shape.head_dim, dtype=torch_dtype(dtype), requires_grad=True)
        for heads in (shape.num_attention_heads, *[shape.num_key_value_heads] * 2)
    )

    def step() -> None:
        out: Tensor = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            is_causal=True,
            enable_gqa=shape.num_attention_heads != shape.num_key_value_heads,
        )
        torch.autograd.backward(out, torch.ones_like(out))

    forward = forward_per_token(_one_layer(shape), tokens).attention * tokens
    return 3.5 * forward / trial_seconds(step)


def _head_rate(shape: Checkpoint, dtype: str, window: int, device: torch.device) -> float:
    """The loss of some chunks of tokens with its gradient, the head frozen."""
    per_token = 4.0 * shape.hidden_size * shape.vocab_size
    tokens = _affordable(per_token, window, device)
    kind: dict[str, Any] = {"dtype": torch_dtype(dtype), "device": device}
    hidden = torch.randn(tokens, shape.hidden_size, **kind, requires_grad=True)
    # small, as trained heads are: logits of tens would fill the softmax with slow denormal numbers
    head = 0.02 * torch.randn(shape.vocab_size, shape.hidden_size, **kind)
    labels = torch.zeros(tokens, dtype=torch.int64, device=device)
    chunk = min(tokens, CHUNKS[device.type][0])
    seconds = trial_seconds(
        lambda: torch.autograd.backward(chunked_nll(hidden, head, labels, chunk)), device=device
    )
    return per_token * tokens / seconds


def _affordable(operations_per_token: float, window: int, device: torch.device) -> int:
    """Tokens of a trial: at most `MOST_TOKENS`, and what `MOST_OPERATIONS` pay for."""
    paid = int(MOST_OPERATIONS[device.type] / operations_per_token)
    return max(16, min(window, MOST_TOKENS[device.type], paid))


def _one_layer(shape: Checkpoint) -> Checkpoint:
    return replace(shape, num_layers=1)


def random_model(shape: Checkpoint, dtype: str) -> LlamaForCausalLM:
    """Layers of `shape` under a vocabulary of 8."""
    config = config_of(shape, vocab_size=8, attn_implementation=register_attention())
    return LlamaForCausalLM(config).to(torch_dtype(dtype))


def config_of(shape: Checkpoint, **settings: Any) -> LlamaConfig:
    """What transformers builds layers of `shape` from; `settings` are fields of its own."""
    return LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        **settings,
    )


def trial_seconds(
    step: Callable[[], object], repeats: int = 3, device: torch.device = CPU
) -> float:
    """The least of `repeats` after one that is not timed: CPU time over the threads in use. Of a
    GPU their mean until all is done: it is told its next work while it does this one, and a single
    layer that is waited for takes up to 1.4 times as long."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(GPU_REPEATS):
            step()
        torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / GPU_REPEATS
    spent = []
    for _ in range(repeats):
        started = time.process_time()
        step()
        spent.append(time.process_time() - started)
    return max(min(spent) / torch.get_num_threads(), 1e-9)
