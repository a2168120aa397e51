"""FlashAttention-2 as torch ships it; its shapes are [B, S, H, D], or [S, H, D] of several rows."""

from __future__ import annotations

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Grads


class FlashKernel(AbstractKernel):
    """FlashAttention-2; keys and values are not repeated for the heads that share them. Its causal
    mask is lower-right where keys are more than queries, as `causal_lower_right` of
    `torch.nn.attention.bias` relies on."""

    takes_documents = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor]:
        rows = [_rows(part, documents) for part in (query, key, value)]
        out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
            *rows, *_bounds(query, documents), 0.0, True, False, scale=scale
        )
        return _heads_first(out, documents), log_sum

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
        rows = [_rows(part, documents) for part in (grad, query, key, value, out)]
        drawn = torch.zeros(2, dtype=torch.uint64, device=query.device)  # no dropout: not read
        grads = torch.ops.aten._flash_attention_backward(
            *(*rows, log_sum, *_bounds(query, documents), 0.0, True, drawn, drawn[:0]),
            scale=scale,
        )
        query_grad, key_grad, value_grad = (_heads_first(part, documents) for part in grads)
        return query_grad, key_grad, value_grad


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
    of_keys = documents.of_keys
    ends, longest = (documents.cu_seqlens, of_keys.cu_seqlens), (documents.longest, of_keys.longest)
    return *ends, *longest  # type: ignore[return-value]
