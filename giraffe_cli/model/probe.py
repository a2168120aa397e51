"""Which attention kernel a GPU is fastest with: each is checked, then timed, and the result told.

    probed = probe(AttentionShape(32, 8, 128), torch.bfloat16, tokens=32768, device=device)
    kernels, told = settle("auto", probed)

A kernel counts when its output and gradients over four documents are those of float32 to 1e-2 of
their norm, which is what bfloat16 leaves (measured: 2e-3 to 5e-3). The time is of one forward and
one backward pass over a window of one document; a second or two for all kernels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from giraffe_cli.errors import InvalidInput, first_line
from giraffe_cli.model.kernel_base import AbstractKernel, Documents, Inputs
from giraffe_cli.model.kernels import KERNELS, Kernels

CANDIDATES = ("cudnn", "flash", "efficient")
"""What `auto` chooses from; any other is measured where it is asked for."""
REPEATABLE = ("flash", "efficient")
"""Those whose backward pass adds in order where torch is told to repeat itself, best first."""
ALLOWED = 1e-2
"""Of the reference's norm."""
CHECKED = (150, 2100, 106, 70)
"""Documents of the check, in tokens: a long one among short ones."""
PAST = 100
"""Keys of the first of them that have no query, in the check of tails."""
TIMED = 16384
"""Most tokens of the timed window."""
ROUNDS = 3


@dataclass(frozen=True)
class AttentionShape:
    """Of one process."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Probed:
    """What a kernel was found to be."""

    name: str
    teraflops: float = 0.0
    """10¹² operations a second, forward and backward."""
    obstacle: str | None = None
    """Why it cannot be used."""


def probe(
    shape: AttentionShape,
    dtype: torch.dtype,
    tokens: int,
    device: torch.device,
    wanted: str = "auto",
    of_tails: bool = False,
) -> list[Probed]:
    """Every kernel of `CANDIDATES`, and the one that is wanted, on windows of `tokens`, the fastest
    first. `of_tails`: what can attend with the last queries of a document to all its keys, and is
    checked at that."""
    names = dict.fromkeys(name for name in (*CANDIDATES, wanted) if name != "auto")
    found = [
        _probed(name, shape, dtype, min(tokens, TIMED), device, PAST if of_tails else 0)
        for name in names
    ]
    return sorted(found, key=lambda one: -one.teraflops)


def agreed(by_process: Sequence[Sequence[Probed]]) -> list[Probed]:
    """What every process of a training goes by, the fastest first: of each kernel the slowest
    measurement, and an obstacle where any process met one. So all attend alike, whatever noise each
    of them timed."""
    found = []
    for name in (one.name for one in by_process[0]):
        alike = [one for probed in by_process for one in probed if one.name == name]
        obstacle = next((one.obstacle for one in alike if one.obstacle), None)
        slowest = 0.0 if obstacle else min(one.teraflops for one in alike)
        found.append(Probed(name, slowest, obstacle))
    return sorted(found, key=lambda one: -one.teraflops)


def repeatable(probed: Sequence[Probed]) -> list[Probed]:
    """`probed` for a training that repeats itself: a time, which no two measurements have in
    common, decides nothing, and a kernel that adds in any order cannot be used."""
    by_name = {one.name: one for one in probed}
    others = [
        Probed(name, obstacle=one.obstacle or "its backward pass adds in any order")
        for name, one in by_name.items()
        if name not in REPEATABLE
    ]
    return [by_name[name] for name in REPEATABLE] + others


def settle(wanted: str, probed: Sequence[Probed], otherwise: str = "") -> tuple[Kernels, str]:
    """The kernels to train with, `wanted` or by `auto` the first, and a sentence that says so.

    Raises:
        InvalidInput: `wanted` cannot be used here, or nothing can; `otherwise` is the hint.
    """
    usable = [one for one in probed if one.obstacle is None]
    names = [one.name for one in usable if wanted in ("auto", one.name)]
    if not names:
        raise InvalidInput(
            "attention on this GPU: "
            + "; ".join(f"{one.name}: {one.obstacle}" for one in probed if one.obstacle),
            otherwise or "--set train.attention_kernel=auto takes one that works, where one does",
        )
    several = next((name for name in names if KERNELS[name].takes_documents), None)
    if several is None:
        apart = [one.name for one in usable if KERNELS[one.name].takes_documents]
        several = apart[0] if apart and wanted == "auto" else names[0]
    speeds = ", ".join(f"{one.name} {one.teraflops:.0f} TFLOP/s" for one in usable)
    beside = "" if several == names[0] else f", {several} where a window has several documents"
    refused = "".join(f"; not {one.name}: {one.obstacle}" for one in probed if one.obstacle)
    return Kernels.named(names[0], several), f"{speeds}; taken: {names[0]}{beside}{refused}"


def _probed(
    name: str,
    shape: AttentionShape,
    dtype: torch.dtype,
    tokens: int,
    device: torch.device,
    past: int = 0,
) -> Probed:
    kernel = KERNELS[name]()
    if past and not kernel.takes_documents:
        return Probed(name, obstacle="it takes as many keys as queries")
    try:
        error = _error(kernel, shape, dtype, device, past)
        if not error <= ALLOWED:
            return Probed(name, obstacle=f"its error is {error:.1e} of float32's result")
        return Probed(name, _teraflops(kernel, shape, dtype, tokens, device))
    except (RuntimeError, NotImplementedError) as error:
        return Probed(name, obstacle=first_line(error))
    except Exception as error:
        if name in CANDIDATES:
            raise
        # a package of its own, whose errors are of every kind
        return Probed(name, obstacle=first_line(error))


def _error(
    kernel: AbstractKernel,
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    past: int = 0,
) -> float:
    """‖found - reference‖ / ‖reference‖, the largest of output and gradients; the first `past`
    queries are left out, which is what they were had their output no effect."""
    inputs = [part.to(dtype) for part in _random(shape, sum(CHECKED), device)]
    worst = 0.0
    lengths = CHECKED if kernel.takes_documents else (sum(CHECKED),)
    query, key, value, grad = inputs
    grad[:, :, :past] = 0
    out, *expected = _reference([part.float() for part in inputs], lengths)
    documents = Documents.of(lengths, device)
    if past:
        documents = Documents.tiling((lengths[0] - past, *lengths[1:]), device, past)
        query, grad, out, expected[0] = (
            part[:, :, past:] for part in (query, grad, out, expected[0])
        )
    given = Inputs(query, key, value, None, documents)
    found, log_sum = kernel.forward(given)
    grads = kernel.backward(given, found, log_sum, grad)
    for mine, theirs in zip((found, *grads), (out, *expected), strict=True):
        worst = max(worst, float((mine.float() - theirs).norm() / theirs.norm()))
    return worst


def _reference(inputs: list[Tensor], lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """(output, gradients of query, key and value) by the definition, in float32; a key head at a
    time, since the scores of 32 heads, and what goes back through them, are 4 GB."""
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    same = (numbers[:, None] == numbers[None]).tril().to(inputs[0].device)
    by_head = [part.chunk(inputs[1].shape[1], 1) for part in inputs]
    found = [_of_a_key_head(head, same) for head in zip(*by_head, strict=True)]
    return tuple(torch.cat(parts, 1) for parts in zip(*found, strict=True))


def _of_a_key_head(inputs: Sequence[Tensor], same: Tensor) -> tuple[Tensor, ...]:
    """The reference of the queries `[1, H / K, S, D]` that share it."""
    query, key, value = (part.detach().requires_grad_() for part in inputs[:3])
    with torch.enable_grad():
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        out = scores.masked_fill(~same, float("-inf")).softmax(-1) @ value
        grads = torch.autograd.grad(out, (query, key, value), inputs[3])
    return out.detach(), *grads


def _random(shape: AttentionShape, tokens: int, device: torch.device) -> list[Tensor]:
    """Query, key, value and the output's gradient, in the layout a layer gives them."""
    generator = torch.Generator(device).manual_seed(0)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    return [
        torch.randn(1, tokens, count, shape.head_dim, device=device, generator=generator).transpose(
            1, 2
        )
        for count in heads
    ]


def _teraflops(
    kernel: AbstractKernel,
    shape: AttentionShape,
    dtype: torch.dtype,
    tokens: int,
    device: torch.device,
) -> float:
    query, key, value, grad = (part.to(dtype) for part in _random(shape, tokens, device))
    given = Inputs(query, key, value)

    def both() -> None:
        out, log_sum = kernel.forward(given)
        kernel.backward(given, out, log_sum, grad)

    both()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(ROUNDS):
        both()
    end.record()
    end.synchronize()
    seconds = float(start.elapsed_time(end)) / 1000 / ROUNDS
    return 3.5 * 2 * shape.heads * shape.head_dim * tokens**2 / seconds / 1e12
