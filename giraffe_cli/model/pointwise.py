"""What lies between the products of a layer, each one pass over its tensors where it is compiled.

transformers writes RMSNorm, the rotation and SwiGLU as chains of operators, each of which reads and
writes whole tensors: on a GPU that is a third of a layer's time at 8k tokens. `torch.compile` makes
one kernel of each chain, forward and backward. On a CPU they are run as they stand.

Legend of shapes: S tokens, d hidden, f intermediate, H heads, D head_dim.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._triton import has_triton

from giraffe_cli.errors import first_line


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """`weight · hidden / √(mean(hidden²) + ε)` over the last axis, `[..., d]`; the mean in float32
    (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    wide = hidden.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(hidden.dtype)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: `heads` `[1, S, H, D]` turned by `cos`, `sin` `[1, S, D]`, halves of D as pairs."""
    first, second = heads.chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return heads * cos[:, :, None] + turned * sin[:, :, None]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) · up`, `[..., f]` (Shazeer 2020, arXiv:2002.05202)."""
    return functional.silu(gate) * up


def on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is run on `device`: compiled on a GPU where that works."""
    return compiled_on(device, function) or function


def compiled_on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any] | None:
    """`function` compiled for `device`; None where nothing is compiled."""
    is_compiled = device.type == "cuda" and why_not_compiled(device) is None
    return _compiled(function) if is_compiled else None


def why_not_compiled(device: torch.device) -> str | None:
    """What `torch.compile` lacks on a GPU, asked by compiling `swiglu` once, forward and backward;
    None where it works.

    Triton needs a C compiler and Python's headers, which slim images leave out, and a cache it can
    write: each shows in the first kernel only.
    """
    return _why_not(device.type)


@functools.cache
def _why_not(kind: str) -> str | None:
    """Of a kind of device: `cuda` alone, as Accelerate says, is none that any tensor names."""
    if not has_triton():
        return "there is no Triton for this device"
    try:
        with torch.inference_mode(False), torch.enable_grad():
            gate, up = torch.ones(2, 1, 4, 8, device=kind, requires_grad=True)
            _compiled(swiglu)(gate, up).sum().backward()
    except torch.OutOfMemoryError:  # of others, or for now: no reason to compile nothing
        raise
    except Exception as error:  # of dynamo, Inductor, Triton, the C compiler, or the file system
        return first_line(error)
    return None


VARIANTS = 32
"""Of a compiled function at the most, before dynamo runs what is new as it stands: 8 by itself, and
`rms_norm` comes to 9 where the first window is as long as the hidden state is wide."""


@functools.cache
def _compiled(function: Callable[..., Any]) -> Any:
    """For any length: tiles and windows differ in it."""
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, VARIANTS)
    return torch.compile(function, dynamic=True)
