"""Exchanges between processes, of tensors on any device.

NCCL moves the tensors of GPUs, one process to each GPU. Where several processes share a GPU, and on
CPUs, gloo does; of a GPU's tensors torch promises only broadcast and all_reduce over it (the table
of backends in the documentation of `torch.distributed`), so the exchanges here take the way through
host memory then, as bytes: whatever the dtype, nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from giraffe_cli.errors import GiraffeError


def all_to_all(parts: Tensor, group: Any) -> Tensor:
    """[N, ...] → [N, ...] over the N processes of `group`: part r goes to process r."""
    sent = parts.contiguous()
    if _is_out_of_reach(sent, group):
        return all_to_all(_as_bytes(sent).cpu(), group).to(sent.device).view(sent.dtype)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


def all_gather(part: Tensor, whole: Tensor, group: Any) -> Any:
    """Begin to fill `whole` [N·n] with every process's `part` [n], both contiguous; what is
    returned has `wait`, before which `whole` is not to be read."""
    if _is_out_of_reach(part, group):
        host = torch.empty(whole.shape, dtype=whole.dtype)
        all_gather(part.cpu(), host, group).wait()
        whole.copy_(host)
        return _Done()
    # torch 2.13 renamed it, and warns of the name that 2.11 has alone
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return gather(whole, part, group=group, async_op=True)


def sum_of_part(whole: Tensor, rank: int, group: Any) -> tuple[Any, Tensor]:
    """Begin to sum `whole` [N·n] over the N processes of `group`; what is returned first has
    `wait`, after which the second holds entries `rank · n` to `(rank + 1) · n` of the sum, those of
    this process. `whole` is overwritten.

    gloo promises `all_reduce` alone of the two, and adds up the other parts as well.
    """
    size = len(whole) // dist.get_world_size(group)
    if dist.get_backend(group) == "gloo":
        work = dist.all_reduce(whole, group=group, async_op=True)
        return work, whole[rank * size : (rank + 1) * size]
    part = whole.new_empty(size)
    # torch 2.13 renamed it, and warns of the name that 2.11 has alone
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    return scatter(part, whole, group=group, async_op=True), part


def send(tensor: Tensor, to: int, group: Any) -> None:
    """To the process `to` of all, which must `receive` as many numbers."""
    dist.send(tensor.cpu() if _is_out_of_reach(tensor, group) else tensor.contiguous(), to, group)


def receive(like: Tensor, size: int, sender: int, group: Any) -> Tensor:
    """[size] numbers as those of `like` that the process `sender` of all sends."""
    device = "cpu" if _is_out_of_reach(like, group) else like.device
    found = like.new_empty(size, device=device)
    dist.recv(found, sender, group)
    return found


def told_by_first(ask: Callable[[], Any], is_first: bool) -> Any:
    """What `ask` gives the first process, in all of them.

    Raises:
        GiraffeError: what it raised there, in all of them: none waits for another.
    """
    told, error = None, None
    try:
        told = ask() if is_first else None
    except GiraffeError as found:
        error = found
    told, error = told_by_all((told, error))[0]
    if error is not None:
        raise error
    return told


def told_by_all(value: Any) -> list[Any]:
    """What each process gave, in their order: small things that pickle; alone, its own."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, value)
    return told


class _Done:
    """What there is nothing to wait for."""

    def wait(self) -> None: ...


def _is_out_of_reach(tensor: Tensor, group: Any) -> bool:
    """Whether `group` moves host memory only, and `tensor` lies elsewhere."""
    return tensor.device.type != "cpu" and dist.get_backend(group) == "gloo"


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, its last axis in bytes."""
    return tensor.view(torch.uint8)
