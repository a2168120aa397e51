"""Which processes share a window, and who counts what it holds.

    6 processes, sequence_parallel 2      process   0 1   2 3   4 5
    neighbours share a window             share     0     1     2     of the windows of a step
    each a slice of its tokens            slice     0 1   0 1   0 1

What a window yields (nats, gradients) is the sum over the processes that share it, so sums over
all processes are right as they are; what a window holds (targets, tokens) is told by slice 0 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from giraffe_cli.model.gathered_keys import KeyGroup
from giraffe_cli.model.sequence_parallel import SequenceGroup
from giraffe_cli.train.data import Window

PATIENCE = timedelta(hours=3)
"""How long a process waits for the others, of NCCL 10 minutes by itself. One writes a checkpoint
while the others wait (96 GB of 8B with all its moments: 11 minutes at 150 MB/s), and a process
whose windows hold long documents takes far longer than one of short ones; a peer that is lost
without a word holds the others up as long."""


@dataclass(frozen=True)
class Layout:
    """One process's place among those that train together; processes divide by the parallelism."""

    rank: int = 0
    processes: int = 1
    sequence_parallel: int = 1
    """Neighbouring processes that share each window."""
    sequence_parallel_by: str = "heads"
    """What they exchange for attention."""
    nodes: int = 1
    """Machines; neighbours stand on the same one first."""
    base_over_nodes: bool = False
    """Whether a base that is shared out is so over all machines, not over each."""

    @property
    def window_rank(self) -> int:
        """Which share of a step's windows is this process's."""
        return self.rank // self.sequence_parallel

    @property
    def window_processes(self) -> int:
        """How many such shares there are."""
        return self.processes // self.sequence_parallel

    @property
    def slice_rank(self) -> int:
        """Which slice of its windows is this process's."""
        return self.rank % self.sequence_parallel

    def sequence_group(self) -> SequenceGroup | None:
        """The processes that share this one's windows; None where each has its own.

        Every process must call this, in the same order as its other collective calls.
        """
        size = self.sequence_parallel
        if size == 1:
            return None
        groups = [
            dist.new_group(list(range(first, first + size)), timeout=PATIENCE)
            for first in range(0, self.processes, size)
        ]
        kind = SequenceGroup if self.sequence_parallel_by == "heads" else KeyGroup
        return kind(groups[self.window_rank], self.slice_rank, size)

    @property
    def base_rank(self) -> int:
        """Which part of a base that is shared out is this process's."""
        return self.rank % self.base_processes

    @property
    def base_processes(self) -> int:
        """How many such parts there are: one for each process of a machine, or of all."""
        return self.processes if self.base_over_nodes else self.processes // self.nodes

    def base_group(self) -> Any:
        """The processes that share a base out: those of this machine, between which exchanges are
        fast, unless it is over all machines. None where they are all.

        Every process must call this, in the same order as its other collective calls.
        """
        size = self.base_processes
        if size == self.processes:
            return None
        firsts = range(0, self.processes, size)
        groups = [
            dist.new_group(list(range(first, first + size)), timeout=PATIENCE) for first in firsts
        ]
        return groups[self.rank // size]

    def peer_group(self) -> Any:
        """The processes with the same part of a base that is shared out, one of each machine; None
        where there is no other.

        Every process must call this, in the same order as its other collective calls.
        """
        size = self.base_processes
        if size == self.processes:
            return None
        groups = [
            dist.new_group(list(range(first, self.processes, size)), timeout=PATIENCE)
            for first in range(size)
        ]
        return groups[self.base_rank]

    def counts(self, windows: Sequence[Window]) -> tuple[int, int]:
        """Targets and tokens of `windows`, such that the sum over all processes counts each
        window once."""
        if self.slice_rank:
            return 0, 0
        return sum(w.num_targets for w in windows), sum(w.input_ids.numel() for w in windows)
