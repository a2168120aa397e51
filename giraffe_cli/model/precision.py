"""Whether a machine computes in bfloat16, and what is computed in where nobody says.

A CPU without units for it (x86 without AVX-512: most desktops and laptops, servers up to AMD's
Milan) takes products of bfloat16 apart: one thread of such an EPYC does 8 to 11 GFLOP/s of a
forward pass's and 0.3 to 1.2 of a backward pass's, where float32 has 55 to 70 of either.
"""

from __future__ import annotations

from giraffe_cli.config.building import resolve_dtype
from giraffe_cli.progress import Reporter, SilentReporter

SLOW = "this CPU has no units for bfloat16, which trains some 50 times as slowly here"


def multiplies_bfloat16() -> bool:
    """Whether what giraffe computes on here does: a GPU, else this CPU."""
    import torch

    return torch.cuda.is_available() or cpu_multiplies_bfloat16()


def cpu_multiplies_bfloat16() -> bool:
    """Whether oneDNN, torch's library for products on a CPU, has those of bfloat16 for this one."""
    import torch

    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


def computed_in(requested: str, stored: str, reporter: Reporter | None = None) -> str:
    """The type that this machine computes in: what is `requested`, or for `auto` what suits weights
    that are `stored` so. What is slow, or not as stored, is told."""
    is_fast, reporter = multiplies_bfloat16(), reporter or SilentReporter()
    chosen = resolve_dtype(requested, stored, is_fast)
    if chosen == "bfloat16" and not is_fast:
        reporter.warn(f"computing in bfloat16: {SLOW} as float32")
    elif chosen != resolve_dtype(requested, stored):
        reporter.info(f"computing in {chosen}: {SLOW}")
    return chosen
