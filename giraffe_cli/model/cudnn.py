"""cuDNN's attention: 1.6 to 1.9 times FlashAttention-2 on Hopper (`scripts/bench_gpu.py`).

For windows of one document. It prepares every new shape for about half a second, and documents come
in every length: lengthened to a few lengths and attended one by one they were as fast, but two
windows of eighteen that had two documents got gradients that are no numbers (an H200, torch 2.11,
documents of 7,895 and 8,073 tokens lengthened to 8,192). So several go to FlashAttention-2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Grads


class CudnnKernel(AbstractKernel):
    """16 bits, one document."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor]:
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True, False, scale=scale
        )
        return found[0], found[1]

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        log_sum: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> Grads:
        size = query.shape[2]
        drawn = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout: not read
        grads: Grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, query, key, value, out, log_sum, drawn, drawn),
            *(None, None, None, size, size, 0.0, True),
            scale=scale,
        )
        return grads
