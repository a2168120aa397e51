"""What users are told: exit codes, near misses, all problems at once, one place that prints."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
import torch

from giraffe_cli import errors
from giraffe_cli.cli.app import of_the_machine
from giraffe_cli.errors import GiraffeError, InvalidInput, near_misses, raise_together


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("GiraffeError", 1),
        ("UsageError", 2),
        ("InvalidInput", 3),
        ("DoesNotFit", 4),
        ("GateFailed", 5),
        ("Interrupted", 130),
        ("Terminated", 143),
    ],
)
def test_exit_codes_are_the_documented_ones(name, code):
    kind = getattr(errors, name)
    assert issubclass(kind, GiraffeError)
    assert kind.exit_code == code


def test_near_misses_come_before_the_list():
    assert near_misses("yran", ["yarn", "ntk"]) == "did you mean `yarn`? known: ntk, yarn"
    assert near_misses("qqq", ["yarn", "ntk"]) == "known: ntk, yarn"


def test_problems_are_raised_together_and_none_raises_nothing():
    raise_together([], "config")
    with pytest.raises(InvalidInput, match="^config: only this$"):
        raise_together(["only this"], "config")
    with pytest.raises(InvalidInput) as caught:
        raise_together(["first", "second"], "config", "mend it")
    assert caught.value.message == "config: 2 problems\n  - first\n  - second"
    assert caught.value.hint == "mend it"


def run_main(monkeypatch, stop: BaseException) -> int:
    from giraffe_cli.cli import app

    def fail(**named: str) -> None:
        raise stop

    monkeypatch.setattr(app, "make_app", lambda names: fail)
    monkeypatch.setattr(sys, "argv", ["giraffe"])
    with pytest.raises(SystemExit) as caught:
        app.main()
    return caught.value.code


def test_an_error_becomes_text_with_its_hint_on_stderr_alone(monkeypatch, capsys):
    code = run_main(monkeypatch, InvalidInput("head_dim is 7 [odd]", "run giraffe doctor"))
    captured = capsys.readouterr()
    assert code == 3
    assert captured.out == ""
    assert captured.err == "error: head_dim is 7 [odd]\n\nhint: run giraffe doctor\n"


def test_control_c_exits_with_130(monkeypatch, capsys):
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130
    assert "extend, pack-data, eval and rope go on where they stopped" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_ends_a_command_is_told_and_it_cleans_up(monkeypatch, capsys, number):
    from giraffe_cli.cli import app, console

    cleaned = []

    def stop(*_: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    monkeypatch.setattr(console.Console, "result", stop)
    monkeypatch.setattr(sys, "argv", ["giraffe", "rope", "list"])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert (caught.value.code, cleaned) == (143, [True])
    told = f"error: ended by {number.name}\n\nhint: run the same command again;"
    assert told in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_sigterm_ends_forked_workers_and_a_second_one_the_command():
    script = """
import os, signal
from giraffe_cli.cli.terminated import SignalledToEnd, ending_in_order
with ending_in_order():
    child = os.fork()
    if child == 0:
        signal.raise_signal(signal.SIGTERM)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    try:
        signal.raise_signal(signal.SIGTERM)
    except SignalledToEnd:
        print("first", flush=True)
    signal.raise_signal(signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{signal.SIGTERM}\nfirst\n", "")
    assert done.returncode == -signal.SIGTERM


@pytest.mark.parametrize("command", [["doctor"], ["rope", "list"]])
def test_control_c_within_a_command_says_how_to_go_on(monkeypatch, capsys, command):
    from giraffe_cli.cli import app, console

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(console.Console, "result", stop)
    monkeypatch.setattr(sys, "argv", ["giraffe", *command])
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 130
    assert "error: interrupted\n\nhint: run the same command again;" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        # pinned memory, and a handle's workspace: nothing that torch's allocator was asked for
        torch.AcceleratorError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_full_memory_is_no_traceback_wherever_it_comes(monkeypatch, capsys, error):
    assert run_main(monkeypatch, error) == 4
    told = capsys.readouterr().err
    assert f"error: memory ran out: {str(error).splitlines()[0] if str(error) else 'Mem'}" in told
    assert "hint: " in told
    assert "Traceback" not in told


def test_a_bug_keeps_its_traceback(monkeypatch):
    from giraffe_cli.cli import app

    monkeypatch.setattr(app, "make_app", lambda names: lambda **named: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app.main()


def test_debug_shows_the_traceback_of_a_known_error(monkeypatch):
    from giraffe_cli.cli import app

    def fail(**named: str) -> None:
        raise InvalidInput("x")

    monkeypatch.setattr(app, "make_app", lambda names: fail)
    monkeypatch.setenv("GIRAFFE_DEBUG", "1")
    with pytest.raises(InvalidInput):
        app.main()


def test_only_the_command_that_is_asked_for_is_imported(monkeypatch, capsys):
    """All eight together take 0.24 CPU-seconds that a short command should not pay."""
    code = (
        "import sys; sys.argv = ['giraffe', 'rope', 'list', '--json']\n"
        "from giraffe_cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted(n for n in sys.modules if n.startswith('giraffe_cli.cli.')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = done.stderr.strip().splitlines()[-1]
    assert "giraffe_cli.cli.rope'" in loaded
    assert "giraffe_cli.cli.extend" not in loaded
    assert "giraffe_cli.cli.pack_data" not in loaded


@pytest.mark.parametrize(
    ("error", "words"),
    [(PermissionError(13, "Permission denied", "w"), "may not"), (OSError(28, "full"), "not full")],
)
def test_a_failing_disk_and_a_file_that_may_not_be_read_have_other_remedies(error, words):
    """Of weights that nobody may read the hint asked for a folder that is writable."""
    assert words in str(of_the_machine(error).hint)
