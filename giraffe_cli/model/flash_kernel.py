"""FlashAttention-2 as torch ships it; its shapes are [B, S, H, D], or [S, H, D] of several rows."""

from __future__ import annotations

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Grads, Inputs


class FlashKernel(AbstractKernel):
    """FlashAttention-2; keys and values are not repeated for the heads that share them. Its causal
    mask is lower-right where keys are more than queries, as `causal_lower_right` of
    `torch.nn.attention.bias` relies on."""

    takes_documents = True

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        documents = given.documents
        rows = [rows_of(part, documents) for part in given]
        out, log_sum, *_ = torch.ops.aten._flash_attention_forward(
            *rows, *_bounds(given), 0.0, True, False, scale=given.scale
        )
        return heads_first(out, documents), log_sum

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        documents = given.documents
        rows = [rows_of(part, documents) for part in (grad, *given, out)]
        drawn = torch.zeros(2, dtype=torch.uint64, device=grad.device)  # no dropout: not read
        grads = torch.ops.aten._flash_attention_backward(
            *(*rows, log_sum, *_bounds(given), 0.0, True, drawn, drawn[:0]),
            scale=given.scale,
        )
        query_grad, key_grad, value_grad = (heads_first(part, documents) for part in grads)
        return query_grad, key_grad, value_grad


def rows_of(tensor: Tensor, documents: Documents | None) -> Tensor:
    """[B, H, S, D] → [B, S, H, D], or [S, H, D] of the one row that holds documents."""
    rows = tensor.transpose(1, 2)
    return rows if documents is None else rows.squeeze(0)


def heads_first(rows: Tensor, documents: Documents | None) -> Tensor:
    """The inverse of `rows_of`."""
    return (rows if documents is None else rows.unsqueeze(0)).transpose(1, 2)


def _bounds(given: Inputs) -> tuple[Tensor | None, ...]:
    """`cum_seq_q, cum_seq_k, max_q, max_k` of FlashAttention-2's operators."""
    documents = given.documents
    if documents is None:
        size: int = given.query.shape[2]
        return None, None, size, size  # type: ignore[return-value]
    of_keys = documents.of_keys
    ends, longest = (documents.cu_seqlens, of_keys.cu_seqlens), (documents.longest, of_keys.longest)
    return *ends, *longest  # type: ignore[return-value]
