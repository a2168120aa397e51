"""Two processes and one folder: the second is told who holds it; a dead holder holds nothing."""

from __future__ import annotations

import os
import signal
import socket

import pytest

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
