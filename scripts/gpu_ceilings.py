"""What a card sustains at its best: matrix products, attention by kernel, copies to the host.

    TF/s of bfloat16 products on random data; of causal attention forward and backward for each
    kernel that torch brings, 32 heads with 8 of keys; GB/s of pinned copies each way

The best of these is the limit that `bench_gpu.py` holds a training step against.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

HEADS, KEY_HEADS = 32, 8
PRODUCTS = {"square": (8192, 8192, 8192), "mlp": (32768, 4096, 14336)}
PACKED = 4
REPEATS = 3


def measure(cell: Any, device: str) -> dict[str, Any]:
    """Everything, on `device`; on a CPU at toy sizes, so that the code runs."""
    import torch

    started = time.monotonic()
    is_cuda = device == "cuda"
    lengths = (16384, 32768) if is_cuda else (128,)
    place = torch.device(device)
    found: dict[str, Any] = {
        "outcome": "ok",
        "device": torch.cuda.get_device_name() if is_cuda else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if is_cuda else 0,
        "torch": torch.__version__,
        "products": {name: _product(place, *size) for name, size in _sizes(is_cuda).items()},
        "attention": {
            f"{width}/{length}/{documents}": _attention(place, width, length, documents)
            for width in (128, 64)
            for length in lengths
            for documents in ("one", "packed")
            if documents == "one" or length == lengths[-1]
        },
        "copies": _copies() if is_cuda else {},
        "trials": {},
    }
    for shape in filter(None, cell.settings.get("trials", "").split("+")):
        try:
            found["trials"][shape] = _trial(shape, place)
        except Exception as error:  # the ceilings stand without it
            found["told"] = f"trial step of {shape}: {type(error).__name__}: {error}"[:600]
    return {**found, "seconds": time.monotonic() - started}


def rates(found: dict[str, Any], head_dim: int, length: int) -> dict[str, float]:
    """Operations a second: `product`, and `forward` and `backward` of attention by the fastest
    kernel at the nearest width and length."""
    whole = [name.split("/") for name in found["attention"] if name.endswith("/one")]
    nearest = min(whole, key=lambda one: (abs(int(one[0]) - head_dim), abs(int(one[1]) - length)))
    kernels = found["attention"]["/".join(nearest)]
    good = [kernel for kernel in kernels.values() if "forward" in kernel]
    return {
        "product": max(found["products"].values()),
        "forward": max(kernel["forward"] for kernel in good),
        "backward": max(kernel["backward"] for kernel in good),
    }


def _trial(shape: str, place: Any) -> dict[str, float | None]:
    """What the plan's own trial step finds for a window of 32k: the rates that it predicts with."""
    from gpu_cells import Cell
    from gpu_paths import dtype_name, shape_of, train_config

    from giraffe_cli.plan.trial import trial_step

    cell = Cell.named(f"{shape}/{'32k' if place.type == 'cuda' else '256'}/one/ours")
    rates = trial_step(
        shape_of(cell), train_config(cell), dtype_name(place), cell.length, device=place
    )
    return dict(rates.to_json())


def _sizes(is_cuda: bool) -> dict[str, tuple[int, int, int]]:
    return PRODUCTS if is_cuda else {"square": (64, 64, 64)}


def _product(place: Any, rows: int, inner: int, columns: int) -> float:
    import torch

    left = torch.randn(rows, inner, device=place, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=place, dtype=torch.bfloat16)
    return 2.0 * rows * inner * columns / _seconds(lambda: left @ right, place, 10)


def _attention(place: Any, width: int, length: int, documents: str) -> dict[str, dict[str, Any]]:
    """By kernel: operations a second `forward` and `backward`, or the `error` it ended with."""
    import torch

    torch.manual_seed(0)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    q, k, v, grad = (
        torch.randn(1, heads, length, width, device=place, dtype=dtype, requires_grad=True)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    )
    pieces = PACKED if documents == "packed" else 1
    operations = 2.0 * HEADS * width * length**2 / pieces
    found: dict[str, dict[str, Any]] = {}
    reference = None
    for name, attend in _kernels(place, length, pieces).items():
        try:
            out = attend(q, k, v)
            forward = _seconds(partial(attend, q, k, v), place, REPEATS)
            back = _seconds(partial(_slopes, out, (q, k, v), grad.detach()), place, REPEATS)
        except Exception as error:  # a kernel that refuses is a finding
            found[name] = {"error": f"{type(error).__name__}: {error}"[:200]}
            continue
        reference = out.detach() if reference is None else reference
        difference = float((out.detach() - reference).norm() / reference.norm())
        found[name] = {
            "forward": operations / forward,
            "backward": 2.5 * operations / back,
            "difference": difference,
        }
    return found


def _slopes(out: Any, inputs: tuple[Any, ...], grad: Any) -> Any:
    import torch

    return torch.autograd.grad(out, inputs, grad, retain_graph=True)


def _kernels(place: Any, length: int, pieces: int) -> dict[str, Callable[..., Any]]:
    """Causal attention of documents of equal length, [1, H, S, D] each, by name."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    each = length // pieces

    def plain(q: Any, k: Any, v: Any) -> Any:
        parts = zip(*(torch.split(one, each, 2) for one in (q, k, v)), strict=True)
        done = [
            scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts
        ]
        return torch.cat(done, 2) if pieces > 1 else done[0]

    def under(backend: Any) -> Callable[..., Any]:
        def attend(q: Any, k: Any, v: Any) -> Any:
            with sdpa_kernel(backend):
                return plain(q, k, v)

        return attend

    def batched(backend: Any) -> Callable[..., Any]:
        def attend(q: Any, k: Any, v: Any) -> Any:
            rows = [one.unflatten(2, (pieces, each)).transpose(1, 2)[0] for one in (q, k, v)]
            with sdpa_kernel(backend):
                done = scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True)
            return done.transpose(0, 1).flatten(1, 2)[None]

        return attend

    if place.type != "cuda":
        return {"default": plain}
    kernels = {
        "default": plain,
        "flash": under(SDPBackend.FLASH_ATTENTION),
        "cudnn": under(SDPBackend.CUDNN_ATTENTION),
    }
    if pieces > 1:
        kernels["cudnn in rows"] = batched(SDPBackend.CUDNN_ATTENTION)
    varlen = _varlen(place, length, pieces)
    return {**kernels, **({"varlen": varlen} if varlen else {})}


def _varlen(place: Any, length: int, pieces: int) -> Callable[..., Any] | None:
    """torch's own, where this torch has it."""
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    each = length // pieces
    bounds = torch.arange(0, length + 1, each, device=place, dtype=torch.int32)
    shared = "enable_gqa" in inspect.signature(varlen_attn).parameters
    settings = {"enable_gqa": True} if shared else {}  # torch 2.11 does without asking

    def attend(q: Any, k: Any, v: Any) -> Any:
        rows = [one[0].transpose(0, 1) for one in (q, k, v)]
        out = varlen_attn(*rows, bounds, bounds, each, each, window_size=(-1, 0), **settings)
        return out.transpose(0, 1)[None]

    return attend


def _copies() -> dict[str, float]:
    """GB/s of a pinned GiB to the host, from it, and both at once (the sum); seconds to pin it."""
    import torch

    size = 1 << 30
    started = time.perf_counter()
    host = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    pinning = (time.perf_counter() - started) / 2
    device = [torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2)]
    place, side = torch.device("cuda"), torch.cuda.Stream()

    def both() -> None:
        side.wait_stream(torch.cuda.current_stream())
        host[0].copy_(device[0], non_blocking=True)
        with torch.cuda.stream(side):
            device[1].copy_(host[1], non_blocking=True)
        torch.cuda.current_stream().wait_stream(side)

    def out() -> None:
        host[0].copy_(device[0], non_blocking=True)

    def back() -> None:
        device[1].copy_(host[1], non_blocking=True)

    return {
        "to_host": size / _seconds(out, place, 3) / 1e9,
        "from_host": size / _seconds(back, place, 3) / 1e9,
        "both": 2 * size / _seconds(both, place, 3) / 1e9,
        "pin_seconds_per_gib": pinning,
    }


def _seconds(work: Callable[[], object], place: Any, repeats: int) -> float:
    """The median of `repeats`, after one more."""
    import torch

    work()
    if place.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize()
    spent = [one.elapsed_time(two) for one, two in zip(marks, marks[1:], strict=False)]
    return sorted(spent)[len(spent) // 2] / 1000
