"""giraffe's commands in children of one process that has imported everything.

A child costs a fork instead of six seconds of imports. It runs `giraffe_cli.cli.app.main` with the
command line in `sys.argv`, its output in files and one thread; `disturb` is called in it before.
The proof's second process (`verify_probe.py`) is replaced by its own code in the same child, unless
`whole` is asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODULES = (
    "torch accelerate peft datasets pyarrow.parquet matplotlib.pyplot gguf jinja2"
    " transformers.models.llama.modeling_llama transformers.integrations.ggml"
    " giraffe_cli.pipeline giraffe_cli.cli.extend giraffe_cli.cli.evaluate giraffe_cli.cli.merge"
    " giraffe_cli.cli.export giraffe_cli.cli.verify giraffe_cli.cli.pack_data giraffe_cli.cli.plan"
    " giraffe_cli.cli.generate giraffe_cli.cli.report giraffe_cli.corpus.packing"
    " giraffe_cli.export.targets.gguf giraffe_cli.export.targets.adapter"
    " giraffe_cli.report.evaluation giraffe_cli.report.pack_page giraffe_cli.verify_probe"
    " giraffe_cli.inference.session giraffe_cli.evals.opening"
).split()
PATIENCE, CPU_SECONDS, MEMORY = 240.0, 60, 16 << 30
"""What a command may take, each many times what its undisturbed run takes; more is a hang."""
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_COLOR": "1",
    "COLUMNS": "160",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Exit code; minus the signal's number when one ended it."""
    stdout: str
    stderr: str
    seconds: float
    hung: bool = False


def import_everything() -> None:
    """Once, before the first child."""
    import importlib
    import warnings

    os.environ.update(SETTINGS)
    warnings.simplefilter("ignore")
    for name in MODULES:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


class Command:
    """A started command: `wait` for it, or signal it."""

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        disturb: Callable[[], None] = lambda: None,
        *,
        stdin: bytes = b"",
        whole: bool = False,
        user: int | None = None,
        file_size: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.output = [folder / ".stdout", folder / ".stderr"]
        self.started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.environ.update(settings or {})
            code = 70
            try:
                self._redirect(folder, stdin)
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, 2 * CPU_SECONDS))
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                if file_size is not None:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
                if user is not None:
                    os.setresgid(user, user, user)
                    os.setresuid(user, user, user)
                if not whole:
                    _probe_here()
                disturb()
                code = _main([str(word) for word in words])
            finally:
                _flush()
                os._exit(code)

    def _redirect(self, folder: Path, stdin: bytes) -> None:
        os.setsid()
        os.chdir(folder)
        for number, path in enumerate(self.output, start=1):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(descriptor, number)
        reading, writing = os.pipe()
        os.write(writing, stdin)
        os.close(writing)
        os.dup2(reading, 0)
        for name in ("stdout", "stderr"):
            number = 1 if name == "stdout" else 2
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w"), "utf-8"))
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r")), "utf-8")

    def signal(self, number: int) -> None:
        """Send a signal to the command alone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Until it ends; one that hangs is killed."""
        deadline, pause, hung = self.started + patience, 0.001, False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                hung = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(0.02, pause * 1.5)
        texts = [
            path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            for path in self.output
        ]
        for path in self.output:
            path.unlink(missing_ok=True)
        code = os.waitstatus_to_exitcode(status)
        hung |= code == -signal.SIGXCPU
        return Ended(code, *texts, time.monotonic() - self.started, hung)


def run(words: Sequence[object], folder: Path, **options: Any) -> Ended:
    """One command in `folder`, to its end."""
    return Command(words, folder, **options).wait()


def call(work: Callable[[], None], folder: Path) -> Ended:
    """`work` in a child, under the error boundary that commands have."""
    return Command(["call"], folder, lambda: _replace_main(work)).wait()


def _replace_main(work: Callable[[], None]) -> None:
    from giraffe_cli.cli import app

    app.make_app = lambda names=(): lambda **named: work()  # this child's alone


def _main(words: list[str]) -> int:
    from giraffe_cli.cli.app import main

    sys.argv = ["giraffe", *words]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _probe_here() -> None:
    """The probe's answer without its own process."""
    from giraffe_cli import verify, verify_probe

    def ask(request: Mapping[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)  # the real one's is captured
        failure = verify_probe.section(lambda: verify_probe.examine(dict(request), answer))
        os.dup2(kept, 2)
        if failure is not None:
            answer["loaded"] = failure
        answer["modules"] = []
        return dict(json.loads(json.dumps(answer)))

    verify.ask_probe = ask
