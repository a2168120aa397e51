"""Causal attention whose output is kept while the rest of its layer is computed again.

The backward pass of flash attention needs q, k, v, the output and the log-sum-exp of each row. The
first three are cheap to recompute, the last two are the attention itself. So the first pass over a
layer records them on a tape, and the second pass plays them back instead of attending again:

    tape = AttentionTape(store, "layer 3")
    out = attend(q, k, v, scale, tape)      # first pass, no gradient: records
    tape.rewind()
    out = attend(q, k, v, scale, tape)      # second pass: the same tensor, with a gradient

One attention pass of three is saved (forward, recomputation, and 2.5 forwards' worth of backward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.store import AbstractStore


class AttentionTape:
    """Outputs and log-sum-exps of one layer's attention calls, kept in a store, in call order."""

    def __init__(self, store: AbstractStore, name: str) -> None:
        self.store, self.name = store, name
        self.calls = 0
        self.is_recording = True

    def rewind(self) -> None:
        """From now on play back, from the first call on."""
        self.calls, self.is_recording = 0, False

    def record(self, out: Tensor, log_sum: Tensor) -> None:
        """Keep the result of a call: `out` `[B, H, S, D]`, `log_sum` `[B, H, S]`."""
        self.store.put(f"{self.name}/out/{self.calls}", out)
        self.store.put(f"{self.name}/lse/{self.calls}", log_sum)
        self.calls += 1

    def play(self) -> tuple[Tensor, Tensor]:
        """The result of the next call, as `record` took it."""
        number, self.calls = self.calls, self.calls + 1
        take = self.store.take
        return take(f"{self.name}/out/{number}"), take(f"{self.name}/lse/{number}")


def why_not_recorded(dtype: torch.dtype, device: torch.device, dropout: float) -> str | None:
    """Why attention of this kind cannot be kept and played back; None where it can."""
    if dropout:
        return f"the checkpoint's attention_dropout is {dropout:g}"
    if device.type == "cuda" and dtype == torch.float32:
        return "flash attention on a GPU computes in 16 bits only"
    return None


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, tape: AttentionTape
) -> Tensor:
    """Upper-left causal attention without dropout: [B, H, S, D] from query [B, H, S, D] and
    key, value [B, K, S, D]; recorded on `tape`, or played back from it."""
    if tape.is_recording:
        out, log_sum = _forward(query, key, value, scale)
        tape.record(out, log_sum)
        return out
    out, log_sum = tape.play()
    replayed: Tensor = _Replayed.apply(query, key, value, out, log_sum, scale)  # type: ignore[no-untyped-call]
    return replayed


class _Replayed(torch.autograd.Function):
    """Attention that was computed before: the forward returns it, the backward is flash's own."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        log_sum: Tensor,
        scale: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.scale = scale
        return out.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        grads = _backward(grad_outputs[0], query, key, value, out, log_sum, ctx.scale)
        return *grads, None, None, None


def _forward(
    query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> tuple[Tensor, Tensor]:
    """(output [B, H, S, D], log-sum-exp [B, H, S])."""
    if query.device.type == "cpu":
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return out, log_sum
    key, value = _repeated(query, key), _repeated(query, value)
    out, log_sum, *_ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, True, scale=scale
    )
    return out, log_sum


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    scale: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, in their shapes."""
    if query.device.type == "cpu":
        on_cpu: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, query, key, value, out, log_sum, 0.0, True, scale=scale
            )
        )
        return on_cpu
    size = query.shape[2]
    none = torch.zeros((), dtype=torch.uint64, device=query.device)  # no dropout: no random state
    grad_query, grad_key, grad_value = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *(grad, query, _repeated(query, key), _repeated(query, value), out, log_sum),
        *(None, None, size, size, 0.0, True, none, none),
        scale=scale,
    )
    return grad_query, _summed(grad_key, key), _summed(grad_value, value)


def _repeated(query: Tensor, shared: Tensor) -> Tensor:
    """[B, K, S, D] → [B, H, S, D]: the CUDA kernel wants a key head for every query head."""
    groups = query.shape[1] // shared.shape[1]
    return shared if groups == 1 else shared.repeat_interleave(groups, 1)


def _summed(grad: Tensor, shared: Tensor) -> Tensor:
    """[B, H, S, D] → [B, K, S, D]: the gradient of a repeated head is the sum over its copies."""
    batch, heads, size, width = grad.shape
    kept = shared.shape[1]
    return grad if heads == kept else grad.view(batch, kept, heads // kept, size, width).sum(2)
