"""Kernels of causal attention: each gives its log-sum-exp, and goes back from it.

What autograd would save is handed out instead, so that `model/flash.py` can keep it while the rest
of a layer is computed again:

    kernel = KERNELS["flash"]()
    out, log_sum = kernel.forward(query, key, value, scale, None)
    grads = kernel.backward(grad, query, key, value, out, log_sum, scale, None)

All are torch's own; none needs another package.

    cpu        flash attention on a CPU, any type
    flash      FlashAttention-2 (Dao 2023, arXiv:2307.08691), 16 bits; the documents of a packed
               window in one call, as `torch.nn.attention.varlen` makes it
    cudnn      cuDNN's, 16 bits, windows of one document; prepares every new shape for half a second
    efficient  memory-efficient attention (Rabe and Staats 2021, arXiv:2112.05682), float32 too

Legend of shapes: B batch, H heads, K key/value heads, S tokens, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor]
"""Of query, key and value, in their shapes."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed row begin, on the device that attends."""

    cu_seqlens: Tensor
    """[documents + 1] int32."""
    longest: int
    """Tokens."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Documents | None:
        """Of a row of documents of `lengths`; None where there is one."""
        if len(lengths) < 2:
            return None
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
        return cls(ends.to(device, non_blocking=True), max(lengths))


class AbstractKernel(ABC):
    """Upper-left causal attention without dropout; K divides H."""

    takes_documents = False
    """Whether it tells several documents of a row apart in one call."""

    @abstractmethod
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor]:
        """(output [B, H, S, D], log-sum-exp in a shape of the kernel's own), no gradient."""

    @abstractmethod
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
        """The gradients, given the output's."""


class CpuKernel(AbstractKernel):
    """torch's flash attention for CPUs."""

    def forward(self, query, key, value, scale, documents):  # type: ignore[no-untyped-def]
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return out, log_sum

    def backward(self, grad, query, key, value, out, log_sum, scale, documents):  # type: ignore[no-untyped-def]
        grads: Grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, log_sum, 0.0, True, scale=scale
        )
        return grads


class FlashKernel(AbstractKernel):
    """FlashAttention-2; keys and values are not repeated for the heads that share them."""

    takes_documents = True

    def forward(self, query, key, value, scale, documents):  # type: ignore[no-untyped-def]
        rows = [_rows(part, documents) for part in (query, key, value)]
        out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
            *rows, *_bounds(query, documents), 0.0, True, False, scale=scale
        )
        return _heads_first(out, documents), log_sum

    def backward(self, grad, query, key, value, out, log_sum, scale, documents):  # type: ignore[no-untyped-def]
        rows = [_rows(part, documents) for part in (grad, query, key, value, out)]
        drawn = torch.zeros(2, dtype=torch.uint64, device=query.device)  # no dropout: not read
        grads = torch.ops.aten._flash_attention_backward(
            *(*rows, log_sum, *_bounds(query, documents), 0.0, True, drawn, drawn[:0]),
            scale=scale,
        )
        query_grad, key_grad, value_grad = (_heads_first(part, documents) for part in grads)
        return query_grad, key_grad, value_grad


class CudnnKernel(AbstractKernel):
    """cuDNN's attention: 1.5 times FlashAttention-2 on Hopper (`scripts/bench_gpu.py`)."""

    def forward(self, query, key, value, scale, documents):  # type: ignore[no-untyped-def]
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query, key, value, None, True, 0.0, True, False, scale=scale
        )
        return found[0], found[1]

    def backward(self, grad, query, key, value, out, log_sum, scale, documents):  # type: ignore[no-untyped-def]
        size = query.shape[2]
        drawn = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout: not read
        grads: Grads = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(grad, query, key, value, out, log_sum, drawn, drawn),
            *(None, None, None, size, size, 0.0, True),
            scale=scale,
        )
        return grads


class EfficientKernel(AbstractKernel):
    """Memory-efficient attention; keys and values are repeated for the heads that share them."""

    def forward(self, query, key, value, scale, documents):  # type: ignore[no-untyped-def]
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            *(query, _repeated(query, key), _repeated(query, value), None, True, 0.0, True),
            scale=scale,
        )
        return out, log_sum

    def backward(self, grad, query, key, value, out, log_sum, scale, documents):  # type: ignore[no-untyped-def]
        drawn = torch.zeros((), dtype=torch.int64, device=query.device)  # no dropout: not read
        grads = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            *(grad, query, _repeated(query, key), _repeated(query, value), None, out, log_sum),
            *(drawn, drawn, 0.0, [True, True, True, False], True),
            scale=scale,
        )
        return grads[0], _summed(grads[1], key), _summed(grads[2], value)


KERNELS: dict[str, type[AbstractKernel]] = {
    "cpu": CpuKernel,
    "flash": FlashKernel,
    "cudnn": CudnnKernel,
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


def _rows(tensor: Tensor, documents: Documents | None) -> Tensor:
    """[B, H, S, D] → [B, S, H, D], or [S, H, D] of the one row that holds documents."""
    rows = tensor.transpose(1, 2)
    return rows if documents is None else rows[0]


def _heads_first(rows: Tensor, documents: Documents | None) -> Tensor:
    """The inverse of `_rows`."""
    return (rows if documents is None else rows[None]).transpose(1, 2)


def _bounds(query: Tensor, documents: Documents | None) -> tuple[Tensor | None, ...]:
    """`cum_seq_q, cum_seq_k, max_q, max_k` of FlashAttention-2's operators."""
    if documents is None:
        size: int = query.shape[2]
        return None, None, size, size  # type: ignore[return-value]
    ends, longest = documents.cu_seqlens, documents.longest
    return ends, ends, longest, longest  # type: ignore[return-value]


def _repeated(query: Tensor, shared: Tensor) -> Tensor:
    """[B, K, S, D] → [B, H, S, D]."""
    groups = query.shape[1] // shared.shape[1]
    return shared if groups == 1 else shared.repeat_interleave(groups, 1)


def _summed(grad: Tensor, shared: Tensor) -> Tensor:
    """[B, H, S, D] → [B, K, S, D]: the gradient of a repeated head is the sum over its copies."""
    batch, heads, size, width = grad.shape
    kept = shared.shape[1]
    return grad if heads == kept else grad.view(batch, kept, heads // kept, size, width).sum(2)
