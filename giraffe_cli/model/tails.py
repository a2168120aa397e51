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

from giraffe_cli.model.kernel_base import AbstractKernel, Grads, Inputs
from giraffe_cli.model.past import Part, causal, merged_part, whole


class CpuTails(AbstractKernel):
    """Several documents, each of as many keys as queries or more."""

    takes_documents = True

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        parts = [merged_part(_parts(one)) for one in _by_document(given)]
        out = torch.cat([out for out, _ in parts], 2).to(given.query.dtype)
        return out, torch.cat([lse for _, lse in parts], 2)

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        assert given.documents is not None
        lengths = list(given.documents.lengths)
        rows = (torch.split(part, lengths, 2) for part in (out, log_sum, grad))
        found = [_grads(*each) for each in zip(_by_document(given), *rows, strict=True)]
        query, key, value = (torch.cat(each, 2) for each in zip(*found, strict=True))
        return query, key, value


def _by_document(given: Inputs) -> Iterator[Inputs]:
    assert given.documents is not None
    lengths, of_keys = given.documents.lengths, given.documents.of_keys.lengths
    rows = (
        torch.split(part, list(each), 2)
        for part, each in zip(given, (lengths, of_keys, of_keys), strict=True)
    )
    return (Inputs(q, k, v, given.scale) for q, k, v in zip(*rows, strict=True))


def _at(given: Inputs) -> int:
    """How many keys lie before those of the queries."""
    return int(given.key.shape[2] - given.query.shape[2])


def _parts(given: Inputs) -> Iterator[Part]:
    query, key, value = given
    past = _at(given)
    if past:
        yield whole(query, key[:, :, :past], value[:, :, :past], given.scale)
    yield causal(query, key[:, :, past:], value[:, :, past:], given.scale)


def _grads(given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
    """Of one document."""
    query, key, value = given

    def part(keys: slice, is_causal: bool) -> Grads:
        found: Grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad, query, key[:, :, keys], value[:, :, keys], out, log_sum, 0.0, is_causal),
            scale=given.scale,
        )
        return found

    past = _at(given)
    new = part(slice(past, None), True)
    if not past:
        return new
    seen = part(slice(past), False)
    return new[0] + seen[0], torch.cat([seen[1], new[1]], 2), torch.cat([seen[2], new[2]], 2)
