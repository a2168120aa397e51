"""cuDNN's attention: 1.6 to 1.9 times FlashAttention-2 on Hopper (`scripts/bench_gpu.py`).

For windows of one document. It prepares every new shape for about half a second, and documents come
in every length: lengthened to a few lengths and attended one by one they were as fast, but two
windows of eighteen that had two documents got gradients that are no numbers (an H200, torch 2.11,
documents of 7,895 and 8,073 tokens lengthened to 8,192). So several go to FlashAttention-2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Grads, Inputs


class CudnnKernel(AbstractKernel):
    """16 bits, one document."""

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *given, None, True, 0.0, True, False, scale=given.scale
        )
        return found[0], found[1]

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        size = given.query.shape[2]
        drawn = torch.zeros((), dtype=torch.int64, device=grad.device)  # no dropout: not read
        grads: Grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, *given, out, log_sum, drawn, drawn),
            *(None, None, None, size, size, 0.0, True),
            scale=given.scale,
        )
        return grads
