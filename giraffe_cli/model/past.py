"""Attention of new tokens to all tokens before them, part by part.

    softmax over parts = Σ partᵢ · exp(lseᵢ - lse),   lse = log Σ exp(lseᵢ)

Full attention over pieces of the past, causal attention over the new tokens, each with its
log-sum-exp: no part need be in memory beside another, and no mask exists. Legend of shapes:
B batch, H heads, K key/value heads, Q new tokens, N keys, D head_dim. No part gives a gradient.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]
"""`[B, H, Q, D]` and its log-sum-exps `[B, H, Q]`."""


def causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Part:
    """Each of Q queries to as many keys up to its own; K may be less than H."""
    return _flash(query, key, value, scaling, is_causal=True)


def whole(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Part:
    """Every query to every key.

    The heads that share keys are laid one after the other as more queries of one head, so that
    keys and values are read once for all of them: a single bfloat16 query over 4096 keys takes
    0.35 ms instead of 3.0 ms (9 heads, 3 of keys).
    """
    batch, heads, num_new, width = query.shape
    together = query.reshape(batch, key.shape[1], -1, width)
    out, lse = _flash(together, key, value, scaling, is_causal=False)
    return out.reshape(batch, heads, num_new, width), lse.reshape(batch, heads, num_new)


def merged(parts: Iterable[Part], dtype: torch.dtype) -> Tensor:
    """Attention over all parts, `[B, H, Q, D]`; summed in float32."""
    return merged_part(parts)[0].to(dtype)


def merged_part(parts: Iterable[Part]) -> Part:
    """Attention over all parts, of one part its own, of several in float32."""
    total: Tensor | None = None
    total_lse = torch.empty(0)
    for out, lse in parts:
        if total is None:
            total, total_lse = out, lse
            continue
        both = torch.logaddexp(total_lse, lse)
        total = total.float() * (total_lse - both).exp().unsqueeze(-1)
        total += out.float() * (lse - both).exp().unsqueeze(-1)
        total_lse = both
    assert total is not None
    return total, total_lse


def lower_right(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    before: Iterable[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """The last Q of the tokens to all of them, and to the pieces of keys and values `before`."""
    new, past = query.shape[2], key.shape[2] - query.shape[2]

    def parts() -> Iterable[Part]:
        for keys, values in before:
            yield whole(query, keys, values, scaling)
        if new == 1:
            yield whole(query, key, value, scaling)
            return
        if past:
            yield whole(query, key[:, :, :past], value[:, :, :past], scaling)
        yield causal(query, key[:, :, past:], value[:, :, past:], scaling)

    return merged(parts(), query.dtype)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, is_causal: bool
) -> Part:
    """torch's own kernels, which return the log-sum-exp but no gradient for it.

    On a GPU FlashAttention-2 in 16 bits. cuDNN's is faster on Hopper (4096 queries, 16384 keys on
    an H200: 1.16 ms instead of 1.82 ms) but prepares every new shape for up to half a second, and
    each chunk and each token of an answer is a new shape.
    """
    if query.device.type == "cpu":
        cpu_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = cpu_flash(query, key, value, 0.0, is_causal, scale=scaling)
        return out, lse
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.dtype == torch.float32:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        out, lse = efficient(query, key, value, None, True, 0.0, is_causal, scale=scaling)[:2]
        return out, lse[:, :, : query.shape[2]]
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse = flash(query, key, value, 0.0, is_causal, False, scale=scaling)[:2]
    return out, lse
