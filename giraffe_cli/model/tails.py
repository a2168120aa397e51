"""Causal attention of the last queries of documents to all their keys, on a CPU, with gradients.

torch's flash attention for CPUs is upper-left causal. So a document's Q queries attend to its first
N - Q keys whole and to the last Q causally, and the parts are merged by their log-sum-exps; the
backward pass of each part is that of the merged output, which is all that flash attention's needs.

Legend of shapes: H heads, K key/value heads, Q queries, N keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Grads
from giraffe_cli.model.past import Part, causal, merged_part, whole


class CpuTails(AbstractKernel):
    """Several documents, each of as many keys as queries or more."""

    takes_documents = True

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor]:
        parts = []
        for q, k, v in _by_document(documents, query, key, value):
            past = k.shape[2] - q.shape[2]
            parts.append(merged_part(_parts(q, k, v, past, scale)))
        out = torch.cat([out for out, _ in parts], 2).to(query.dtype)
        return out, torch.cat([lse for _, lse in parts], 2)

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
        assert documents is not None
        lengths = list(documents.lengths)
        grads, outs, log_sums = (torch.split(part, lengths, 2) for part in (grad, out, log_sum))
        inputs = _by_document(documents, query, key, value)
        found = [
            _grads(g, o, lse, q, k, v, scale)
            for g, o, lse, (q, k, v) in zip(grads, outs, log_sums, inputs, strict=True)
        ]
        query_grad, key_grad, value_grad = (torch.cat(each, 2) for each in zip(*found, strict=True))
        return query_grad, key_grad, value_grad


def _by_document(
    documents: Documents | None, query: Tensor, key: Tensor, value: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    assert documents is not None
    of_keys = list(documents.of_keys.lengths)
    return zip(
        torch.split(query, list(documents.lengths), 2),
        torch.split(key, of_keys, 2),
        torch.split(value, of_keys, 2),
        strict=True,
    )


def _parts(
    query: Tensor, key: Tensor, value: Tensor, past: int, scale: float | None
) -> Iterator[Part]:
    if past:
        yield whole(query, key[:, :, :past], value[:, :, :past], scale)
    yield causal(query, key[:, :, past:], value[:, :, past:], scale)


def _grads(
    grad: Tensor,
    out: Tensor,
    log_sum: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
) -> Grads:
    """Of one document."""

    def part(keys: Tensor, values: Tensor, is_causal: bool) -> Grads:
        found: Grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, keys, values, out, log_sum, 0.0, is_causal, scale=scale
        )
        return found

    past = key.shape[2] - query.shape[2]
    new = part(key[:, :, past:], value[:, :, past:], True)
    if not past:
        return new
    seen = part(key[:, :, :past], value[:, :, :past], False)
    return new[0] + seen[0], torch.cat([seen[1], new[1]], 2), torch.cat([seen[2], new[2]], 2)
