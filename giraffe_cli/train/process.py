"""The body of one of several worker processes that torch's launcher started (`parallel.launch`).

Rank 0 speaks to the parent through its stdout; every rank leaves its error beside the request.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.model.out_of_memory import is_out_of_memory, outside_of_a_step
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.rundir import read_json
from giraffe_cli.train.parallel import EventReporter, tell_error

Work = Callable[[dict[str, Any], Reporter, Path], None]
"""What a process does: with the request, where it speaks, and the file whose coming stops it."""


def run_worker(work: Work) -> int:
    """`work` on the request named on the command line; the exit code."""
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    request_path = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    reporter: Reporter = EventReporter(sys.stdout) if rank == 0 else SilentReporter()
    try:
        work(read_json(request_path), reporter, request_path.parent / "stop")
    except Interrupted as error:
        tell_error(request_path.parent, rank, error)
        return 0  # anything else makes the launcher kill the other workers while they save
    except (Exception, KeyboardInterrupt) as error:
        told: BaseException = error
        if not isinstance(error, GiraffeError):
            traceback.print_exc()
            told = outside_of_a_step(error) if is_out_of_memory(error) else error
        tell_error(request_path.parent, rank, told)
        return 1
    return 0


def _die_with_the_parent() -> None:
    """The parent holds the other end of stdin; its end is the end of that pipe.

    Not through `sys.stdin`: its lock, held here, would abort the interpreter's own end.
    """
    os.read(0, 1)
    os._exit(1)
