"""cuDNN's attention: 1.6 to 1.9 times FlashAttention-2 on Hopper (`scripts/bench_gpu.py`).

For windows of one document. It prepares every new shape for about half a second, and documents come
in every length: lengthened to a few lengths and attended one by one they were as fast, but two
windows of eighteen that had two documents got gradients that are no numbers (an H200, torch 2.11,
documents of 7,895 and 8,073 tokens lengthened to 8,192). So several go to FlashAttention-2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from giraffe_cli.model.flash_kernel import FlashKernel
from giraffe_cli.model.kernel_base import AbstractKernel, Grads, Inputs
from giraffe_cli.model.store_base import layout_of


class CudnnKernel(AbstractKernel):
    """16 bits, one document; cuDNN refuses one of a single token, which FlashAttention-2 takes."""

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        if given.query.shape[2] == 1:
            return FlashKernel().forward(given)
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *given, None, True, 0.0, True, False, scale=given.scale
        )
        return found[0], found[1]

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        size = given.query.shape[2]
        if size == 1:
            return FlashKernel().backward(given, out, log_sum, grad)
        out, grad = like(given.query, out), like(given.query, grad)
        drawn = torch.zeros((), dtype=torch.int64, device=grad.device)  # no dropout: not read
        grads: Grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, *given, out, log_sum, drawn, drawn),
            *(None, None, None, size, size, 0.0, True),
            scale=given.scale,
        )
        return grads


def like(model: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` with its axes in memory in the order of `model`'s, without gaps.

    torch prepares the backward pass for the strides of the output and its gradient that come
    first, looks a prepared one up by those of query, key and value alone, and computes others
    wrong (pytorch/pytorch#191576).
    """
    wanted, step = [0] * model.dim(), 1
    for axis in reversed(layout_of(model)):
        wanted[axis], step = step, step * model.shape[axis]
    axes = zip(tensor.shape, tensor.stride(), wanted, strict=True)
    if all(size == 1 or found == stride for size, found, stride in axes):
        return tensor
    return torch.empty_strided(model.shape, wanted, dtype=tensor.dtype, device=tensor.device).copy_(
        tensor
    )
