"""The same bits each time: what a training on a GPU gives up speed for under `deterministic`.

Some CUDA kernels add with atomic operations, in an order that differs from run to run: the backward
pass of attention is the one a step has. torch's switch makes its flash and its memory-efficient
kernel add in order, takes another way where there is one, and refuses where there is none. cuBLAS
repeats itself once its workspaces are fixed, by a variable it reads when a process first uses it
(cuBLAS documentation, "Results reproducibility"): therefore a worker process, `parallel.launch`.
On a CPU a fixed number of threads is enough, and what is refused there is refused all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Of a process that is to repeat itself on a GPU."""


@contextlib.contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Within the block torch repeats itself to the bit, where that is `wanted`; or it raises."""
    if not wanted:
        yield
        return
    was_wanted = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    # every tensor of a step is written before it is read, and filling them costs a pass over each
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_wanted, warn_only=only_warned)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
