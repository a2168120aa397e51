"""Two processes and one folder: the second is told who holds it; a dead holder holds nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket

import pytest

from giraffe_cli import lock as lock_module
from giraffe_cli.errors import GiraffeError
from giraffe_cli.lock import held, held_beside
from giraffe_cli.rundir import LOCK, finish_stage


def in_a_child(work) -> int:
    """The exit code of `work` in a child; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work() or 0)
        except GiraffeError:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold(lock, *arguments, **named) -> int:
    with lock(*arguments, **named):
        return 0


@pytest.mark.parametrize("lock", [held, held_beside])
def test_the_second_is_told_the_pid_and_host_of_the_first(tmp_path, lock):
    with lock(tmp_path / "run"), pytest.raises(GiraffeError) as told, lock(tmp_path / "run"):
        pass
    assert f"process {os.getpid()} on {socket.gethostname()}" in told.value.message
    assert told.value.hint
    assert in_a_child(lambda: hold(lock, tmp_path / "run")) == 0


def test_other_processes_are_kept_out_and_leave_no_lock_behind(tmp_path):
    with held(tmp_path):
        assert in_a_child(lambda: hold(held, tmp_path)) == 9
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_sharers_stand_beside_each_other_and_keep_a_single_one_out(tmp_path):
    with held(tmp_path, shared=True):
        assert in_a_child(lambda: hold(held, tmp_path, shared=True)) == 0
        assert in_a_child(lambda: hold(held, tmp_path)) == 9
    with held(tmp_path):
        assert in_a_child(lambda: hold(held, tmp_path, shared=True)) == 9


def test_a_killed_holder_holds_nothing(tmp_path):
    def die():
        with held(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(die) == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    with held(tmp_path):
        pass


def test_a_folder_that_stays_empty_goes_again(tmp_path):
    with held(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()


def test_the_lock_is_no_part_of_a_stage(tmp_path):
    with held(tmp_path):
        (tmp_path / "a").write_text("a")
        assert [*finish_stage(tmp_path, {})["files"]] == ["a"]


@pytest.mark.parametrize("said", ["", "[]", '{"pid": 1}', '{"pid": "x", "host": "y"}'])
def test_a_holder_that_has_not_said_who_it_is_keeps_others_out_all_the_same(tmp_path, said):
    with open(tmp_path / LOCK, "w") as handle:
        handle.write(said)
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        with (
            pytest.raises(GiraffeError, match="which has not said which one") as told,
            held(tmp_path),
        ):
            pass
    assert "wait for it to end" in told.value.hint


def test_a_lock_whose_file_went_while_it_was_taken_is_taken_again(tmp_path, monkeypatch):
    """Its holder let go in between: a file without a name would keep nobody out."""
    opened = []

    def slow(path):
        descriptor = real(path)
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    real = lock_module._open
    monkeypatch.setattr(lock_module, "_open", slow)
    with held(tmp_path):
        assert len(opened) == 2
        assert in_a_child(lambda: hold(held, tmp_path)) == 9


def test_a_file_system_that_cannot_lock_is_named_and_is_no_other_giraffe(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    with pytest.raises(GiraffeError, match=r"cannot lock .*: No locks available"), held(tmp_path):
        pass
