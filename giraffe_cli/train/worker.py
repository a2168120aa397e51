"""One of several training processes, started by torch's launcher: `worker.py request.json`.

Rank 0 speaks to the parent through its stdout; every rank leaves its error beside the request.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

from giraffe_cli.errors import GiraffeError, Interrupted
from giraffe_cli.progress import Reporter, SilentReporter
from giraffe_cli.rundir import read_json
from giraffe_cli.train.job import TrainJob
from giraffe_cli.train.loop import train
from giraffe_cli.train.parallel import EventReporter, tell_error


def main() -> int:
    """Train this process's share; the exit code."""
    threading.Thread(target=_die_with_the_parent, daemon=True).start()
    request_path = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    reporter: Reporter = EventReporter(sys.stdout) if rank == 0 else SilentReporter()
    try:
        train(TrainJob.from_json(read_json(request_path)), reporter, request_path.parent / "stop")
    except Interrupted as error:
        tell_error(request_path.parent, rank, error)
        return 0  # anything else makes the launcher kill the other workers while they save
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, GiraffeError):
            traceback.print_exc()
        tell_error(request_path.parent, rank, error)
        return 1
    return 0


def _die_with_the_parent() -> None:
    """The parent holds the other end of stdin; its end is the end of that pipe.

    Not through `sys.stdin`: its lock, held here, would abort the interpreter's own end.
    """
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
