"""`giraffe extend --nodes`: which of the machines this is, and what one that does not lead does."""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.cli.console import Console
from giraffe_cli.errors import UsageError


def is_another_node(
    nodes: int, node_rank: int | None, rendezvous: str | None, dry_run: bool
) -> bool:
    """Whether another node leads the run; a dry run may be of any.

    Raises:
        UsageError: options of several nodes without them, or a rank that is not known.
    """
    if nodes == 1:
        if node_rank is not None or rendezvous is not None:
            raise UsageError("--node-rank and --rendezvous are of a run on several --nodes")
        return False
    from giraffe_cli.train.nodes import own_rank

    if dry_run and node_rank is None:
        return False
    return own_rank(nodes, node_rank) > 0


def join_run(nodes: int, node_rank: int | None, run_dir: Path, console: Console) -> None:
    """Join the trainings of the run in `run_dir` until they are over."""
    from giraffe_cli.train.joining import join
    from giraffe_cli.train.nodes import own_rank

    rank = own_rank(nodes, node_rank)
    join(run_dir, rank, console)
    console.result({"node": rank, "run_dir": str(run_dir)}, f"node {rank}: the training is over")
