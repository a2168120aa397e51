"""Causal attention whose output is kept while the rest of its layer is computed again.

The backward pass of flash attention needs q, k, v, the output and the log-sum-exp of each row. The
first three are cheap to recompute, the last two are the attention itself. So the first pass over a
layer records them on a tape, and the second pass plays them back instead of attending again:

    tape = AttentionTape(store, "layer 3")
    out = attend(Inputs(q, k, v), kernel, tape)     # first pass, no gradient: records
    tape.rewind()
    out = attend(Inputs(q, k, v), kernel, tape)     # second: the same tensor, with a gradient

One attention pass of three is saved (forward, recomputation, and 2.5 forwards' worth of backward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Inputs
from giraffe_cli.model.store_base import AbstractStore


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
        """Keep the result of a call: `out` `[B, H, S, D]`, `log_sum` as the kernel gave it."""
        self.store.put(f"{self.name}/out/{self.calls}", out)
        self.store.put(f"{self.name}/lse/{self.calls}", log_sum)
        self.calls += 1

    def play(self) -> tuple[Tensor, Tensor]:
        """The result of the next call, as `record` took it."""
        number, self.calls = self.calls, self.calls + 1
        take = self.store.take
        return take(f"{self.name}/out/{number}"), take(f"{self.name}/lse/{number}")


def why_not_recorded(dropout: float) -> str | None:
    """Why attention of this kind cannot be kept and played back; None where it can."""
    return f"the checkpoint's attention_dropout is {dropout:g}" if dropout else None


def attend(given: Inputs, kernel: AbstractKernel, tape: AttentionTape | None = None) -> Tensor:
    """Causal attention without dropout, [B, H, S, D]; recorded on `tape`, or played back."""
    if tape is not None and not tape.is_recording:
        kept = tape.play()
    else:
        with torch.no_grad():
            kept = kernel.forward(given)
        if tape is not None:
            tape.record(*kept)
    if not torch.is_grad_enabled():
        return kept[0]
    attended: Tensor = _Attended.apply(*given, *kept, given, kernel)  # type: ignore[no-untyped-call]
    return attended


class _Attended(torch.autograd.Function):
    """Attention that was computed before: the forward returns it, the backward is the kernel's."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        log_sum: Tensor,
        given: Inputs,
        kernel: AbstractKernel,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.scale, ctx.documents, ctx.kernel = given.scale, given.documents, kernel
        return out.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sum = ctx.saved_tensors
        given = Inputs(query, key, value, ctx.scale, ctx.documents)
        grads = ctx.kernel.backward(given, out, log_sum, grad_outputs[0])
        return *grads, None, None, None, None
