"""FlashAttention-4 of the package `flash-attn-4`, written in CuTe: one source for Hopper and later.

For those who install it (`pip install --pre flash-attn-4`, beta): unlike cuDNN's it takes the
documents of a packed window in one call, unlike FlashAttention-2 it was made for Hopper's tensor
cores. Compiled for the card at its first call (forward and backward for compute capability 9.0: 5 s
on one CPU core). It has not run yet: cross-compiled, shapes checked; so it is never chosen by
itself, and checked against float32 like every other kernel where it is asked for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from giraffe_cli.model.flash_kernel import heads_first, rows_of
from giraffe_cli.model.kernel_base import AbstractKernel, Grads, Inputs


class CuteKernel(AbstractKernel):
    """16 bits, several documents; lower-right causal as FlashAttention-2 is."""

    takes_documents = True

    def forward(self, given: Inputs) -> tuple[Tensor, Tensor]:
        try:
            from flash_attn.cute.interface import _flash_attn_fwd
        except ImportError as error:
            raise RuntimeError(
                f"the package flash-attn-4 is not installed here ({error}): "
                "pip install --pre flash-attn-4"
            ) from error
        rows = [rows_of(part, given.documents) for part in given]
        out, log_sum, *_ = _flash_attn_fwd(*rows, return_lse=True, **_settings(given))
        return heads_first(out, given.documents), log_sum

    def backward(self, given: Inputs, out: Tensor, log_sum: Tensor, grad: Tensor) -> Grads:
        from flash_attn.cute.interface import _flash_attn_bwd

        rows = [rows_of(part, given.documents) for part in (*given, out, grad)]
        found = _flash_attn_bwd(*rows, log_sum, **_settings(given))
        query, key, value = (heads_first(part, given.documents) for part in found[:3])
        return query, key, value


def _settings(given: Inputs) -> dict[str, Any]:
    """Of both passes, by the package's names."""
    settings = {"softmax_scale": given.scale, "causal": True}
    if given.documents is None:
        return settings
    keys = given.documents.of_keys
    return {
        **settings,
        "cu_seqlens_q": given.documents.cu_seqlens,
        "cu_seqlens_k": keys.cu_seqlens,
        "max_seqlen_q": given.documents.longest,
        "max_seqlen_k": keys.longest,
    }
