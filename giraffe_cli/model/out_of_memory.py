"""Memory that runs out, told as what it is.

torch's allocator for CUDA says `torch.OutOfMemoryError`. What is taken past it (pinned host memory,
cuBLAS's workspaces, a compiled kernel's spills), and torch's allocator for CPUs, say it in the text
of a RuntimeError, Python itself by MemoryError; Linux may also end the process without a word, see
`train/parallel.py`.
"""

from __future__ import annotations

import gc

import torch

from giraffe_cli.errors import DoesNotFit, first_line

CPU_ALLOCATOR = "can't allocate memory"
"""c10/core/impl/alloc_cpu.cpp: `DefaultCPUAllocator: can't allocate memory: you tried to ...`."""
PAST_THE_ALLOCATOR = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)
"""What a card says where torch's allocator was not asked."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out."""
    told = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        text in told for text in (CPU_ALLOCATOR, *PAST_THE_ALLOCATOR)
    )


def hand_back() -> None:
    """What nothing refers to any more, back to the device: for those that come next, which may be
    other processes. Within an `except` the error's own frames still hold what they worked on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def outside_of_a_step(error: BaseException) -> DoesNotFit:
    """A memory that ran out while something was opened or read, such as a card that others use."""
    return DoesNotFit(
        f"memory ran out: {first_line(error)}",
        "give it more memory or shorter texts (--lengths of an evaluation), or see whether other "
        "programs hold it (`nvidia-smi` names a card's)",
    )
