"""Kernels of causal attention: each gives its log-sum-exp, and goes back from it.

What autograd would save is handed out instead, so that `model/flash.py` can keep it while the rest
of a layer is computed again:

    kernel = KERNELS["flash"]()
    given = Inputs(query, key, value)
    out, log_sum = kernel.forward(given)
    grads = kernel.backward(given, out, log_sum, grad)

All but `flash4` are torch's own and need no other package.

    cpu        flash attention on a CPU, any type
    flash      FlashAttention-2 (Dao 2023, arXiv:2307.08691), 16 bits; the documents of a packed
               window in one call, as `torch.nn.attention.varlen` makes it
    cudnn      cuDNN's, 16 bits, windows of one document (`model/cudnn.py`)
    flash4     FlashAttention-4, where its package is installed (`model/cute_kernel.py`)
    efficient  memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682), float32 too

Legend of shapes: B batch, H heads, K key/value heads, S tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from giraffe_cli.model.cudnn import CudnnKernel
from giraffe_cli.model.cute_kernel import CuteKernel
from giraffe_cli.model.flash_kernel import FlashKernel
from giraffe_cli.model.kernel_base import AbstractKernel, Grads, Inputs


class CpuKernel(AbstractKernel):
    """torch's flash attention for CPUs."""

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *given, 0.0, True, scale=given.scale
        )
        return out, log_sum

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        grads: Grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, *given, out, log_sum, 0.0, True, scale=given.scale
        )
        return grads


class EfficientKernel(AbstractKernel):
    """Memory-efficient attention; keys and values are repeated for the heads that share them."""

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            *(*_repeated(given), None, True, 0.0, True),
            scale=given.scale,
        )
        return out, log_sum

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        drawn = torch.zeros((), dtype=torch.int64, device=grad.device)  # no dropout: not read
        grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            *(grad, *_repeated(given), None, out, log_sum),
            *(drawn, drawn, 0.0, [True, True, True, False], True),
            scale=given.scale,
        )
        return grads[0], _summed(grads[1], given.key), _summed(grads[2], given.value)


KERNELS: dict[str, type[AbstractKernel]] = {
    "cpu": CpuKernel,
    "flash": FlashKernel,
    "cudnn": CudnnKernel,
    "flash4": CuteKernel,
    "efficient": EfficientKernel,
}


@dataclass(frozen=True)
class Kernels:
    """What a training attends with."""

    one: AbstractKernel
    """For windows of one document, and document by document where `several` is the same."""
    several: AbstractKernel
    """For windows of several."""

    @classmethod
    def named(cls, one: str, several: str | None = None) -> Kernels:
        """The kernels of those names."""
        return cls(KERNELS[one](), KERNELS[several or one]())


def _repeated(given: Inputs) -> Inputs:
    """With keys and values [B, K, S, D] → [B, H, S, D]."""
    groups = given.query.shape[1] // given.key.shape[1]
    if groups == 1:
        return given
    key, value = (part.repeat_interleave(groups, 1) for part in (given.key, given.value))
    return Inputs(given.query, key, value, given.scale)


def _summed(grad: Tensor, shared: Tensor) -> Tensor:
    """[B, H, S, D] → [B, K, S, D]: the gradient of a repeated head is the sum over its copies."""
    batch, heads, size, width = grad.shape
    kept = shared.shape[1]
    return grad if heads == kept else grad.view(batch, kept, heads // kept, size, width).sum(2)
