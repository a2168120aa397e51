"""One process at a time writes a folder, and the one that waits is told who does.

    with held(run_dir): ...             # runs/mine/.giraffe-lock: {"pid": 4711, "host": "node3"}
    with held_beside(out): ...          # .out.giraffe-lock, for what is renamed into place
    with held(out, shared=True): ...    # shards that write side by side, but not with a merge

The kernel holds the lock (flock) and lets it go when the process ends, however it ends: a file that
a killed process left locks nobody out. Folders that machines share must carry flock (NFS 4, Lustre
mounted with `flock`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from giraffe_cli.errors import GiraffeError
from giraffe_cli.rundir import LOCK, make_folder

_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def held(folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold `folder` until the block ends; beside other sharers if `shared`. It is made, and goes
    again where the block leaves it empty.

    Raises:
        GiraffeError: another process holds it; its pid and host are named.
        InvalidInput: the folder cannot be made or written.
    """
    is_new = not folder.exists()
    try:
        with _locked(make_folder(folder) / LOCK, folder, shared):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def held_beside(out: Path) -> Iterator[None]:
    """Hold `out`, a file or folder that is built beside its name and renamed.

    Raises:
        GiraffeError: another process holds it; its pid and host are named.
        InvalidInput: the folder around it cannot be made or written.
    """
    with _locked(make_folder(out.parent) / f".{out.name}{LOCK}", out, shared=False):
        yield


@contextlib.contextmanager
def _locked(path: Path, what: Path, shared: bool) -> Iterator[None]:
    descriptor = _acquire(path, what, shared)
    try:
        yield
    finally:
        _release(descriptor, path, shared)


def _acquire(path: Path, what: Path, shared: bool) -> int:
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _is_at(descriptor, path):
                _sign(descriptor)
                return descriptor
        except OSError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            if error.errno not in _BUSY:
                raise GiraffeError(
                    f"cannot lock {path}: {error.strerror}", "choose another --out"
                ) from error
            raise GiraffeError(
                f"{what} is being written by another giraffe, {holder}",
                "wait for it to end, stop it, or choose another --out",
            ) from None
        os.close(descriptor)  # its holder removed the file in between


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise GiraffeError(
            f"cannot write {path}: {error.strerror or error}",
            "free disk space or choose another --out",
        ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Who holds it, for whoever comes next; of several sharers the last one."""
    with contextlib.suppress(OSError):  # a full disk locks all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(
            descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0
        )


def _holder(descriptor: int) -> str:
    """`process 4711 on node3`."""
    try:
        value = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {int(value['pid'])} on {value['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not said which one it is"


def _release(descriptor: int, path: Path, shared: bool) -> None:
    """Let go and remove the file, unless another sharer still holds it."""
    with contextlib.suppress(OSError):
        if shared:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            path.unlink()
    os.close(descriptor)
