"""Several machines for one run: the first does everything, the others join its trainings.

They share the run folder, and through it find each other; none needs to know another's address:

    nodes/alive            a number that rises for as long as the first node works
    nodes/joined-1.json    a token: node 1 is here, and sees this folder
    nodes/call.json        a training for the nodes whose tokens it names: where, how many processes
    nodes/over-1           the first training has ended on the first node
    nodes/ended.json       there will be no other

A call names tokens, which are drawn anew by each process, so what an earlier run left calls nobody.
Each node runs torch's launcher with its own workers; what they say of errors and stops lies in the
shared folder of the workers (`train/parallel.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from giraffe_cli.errors import InvalidInput, UsageError
from giraffe_cli.rundir import read_json

FOLDER, ALIVE, CALL, ENDED = "nodes", "alive", "call.json", "ended.json"
BEAT = 2.0
"""Seconds between signs of life and between looks."""
PATIENCE = 600.0
"""Seconds without a sign after which a node is given up; shared file systems show a new file after
up to a minute."""


def own_rank(nodes: int, given: int | None) -> int:
    """Which of the `nodes` this machine is: as given, else as Slurm numbers them.

    Raises:
        UsageError: nobody says so, or there is no such node.
    """
    named = os.environ.get("SLURM_NODEID", "") if given is None else str(given)
    if not named.isdigit():
        raise UsageError(
            f"--nodes {nodes}: which of them is this one?",
            "pass --node-rank 0 on the first and 1, 2, … on the others; srun says it by itself",
        )
    if int(named) >= nodes:
        raise UsageError(f"node {named} of {nodes}: they are counted from 0")
    return int(named)


def read_told(path: Path, default: Any) -> Any:
    """The JSON in `path`; `default` where there is none, or none that is whole."""
    try:
        return read_json(path)
    except (OSError, InvalidInput):
        return default
