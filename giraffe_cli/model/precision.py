"""Whether a machine computes in bfloat16, and what is computed in where nobody says.

A CPU without units for it (x86 without AVX-512: most desktops and laptops, servers up to AMD's
Milan) takes products of bfloat16 apart: one thread of such an EPYC does 8 to 11 GFLOP/s of a
forward pass's and 0.3 to 1.2 of a backward pass's, where float32 has 55 to 70 of either. NVIDIA's
GPUs have them from Ampere on.
"""

from __future__ import annotations

from giraffe_cli.config.building import resolve_dtype
from giraffe_cli.progress import Reporter, SilentReporter

AMPERE = (8, 0)


def multiplies_bfloat16() -> bool:
    """Whether all that giraffe computes on here does: the GPUs, else this CPU."""
    import torch

    if torch.cuda.is_available():
        return all(map(gpu_multiplies_bfloat16, range(torch.cuda.device_count())))
    return cpu_multiplies_bfloat16()


def gpu_multiplies_bfloat16(index: int) -> bool:
    """Whether a visible GPU has units for it."""
    import torch

    return torch.cuda.get_device_capability(index) >= AMPERE


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
        reporter.warn(f"{_obstacle()}, so that a step takes many times as long as in float32")
    elif chosen != resolve_dtype(requested, stored):
        reporter.info(f"{_obstacle()}: computing in {chosen}")
    return chosen


def _obstacle() -> str:
    import torch

    which = "a GPU here" if torch.cuda.is_available() else "this CPU"
    return f"{which} has no units for bfloat16"
