"""The GPU that is not there (`scripts/phantom`): what its parts do without any CUDA."""

from __future__ import annotations

import ctypes
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent.parent / "scripts" / "phantom"
FLOAT, LONG, SUM, MAX = 7, 4, 0, 2
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@pytest.fixture(scope="module")
def phantom():
    spec = importlib.util.spec_from_file_location("phantom", HERE / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Of the parts that need no header of CUDA's."""
    target = tmp_path_factory.mktemp("phantom") / "parts.so"
    parts = [HERE / name for name in ("memory.c", "libraries.c", "nccl.c")]
    flags = ["-shared", "-fPIC", "-Wall", "-Werror", "-Wno-unused-parameter"]
    subprocess.run(["gcc", *flags, *parts, "-o", target, "-lpthread"], check=True)
    return target


@needs_gcc
def test_memory_is_counted_and_runs_out(library, monkeypatch):
    monkeypatch.setenv("PHANTOM_BYTES", "1000")
    parts = ctypes.CDLL(str(library))
    parts.phantom_used.restype = ctypes.c_size_t
    assert parts.phantom_account(ctypes.c_size_t(600)) == 0
    assert parts.phantom_account(ctypes.c_size_t(401)) == 1, "no room"
    assert parts.phantom_used() == 600
    parts.phantom_release(0, ctypes.c_size_t(600))
    assert parts.phantom_used() == 0


@needs_gcc
def test_small_copies_to_a_device_are_made_and_long_ones_only_counted(library):
    parts = ctypes.CDLL(str(library))
    parts.phantom_reserve.restype = ctypes.c_void_p
    size = 1 << 40
    device = ctypes.c_void_p(parts.phantom_reserve(ctypes.c_size_t(size)))
    parts.phantom_note(0, device, ctypes.c_size_t(size), 0)
    few, many = ctypes.create_string_buffer(b"count"), ctypes.create_string_buffer(b"x" * 70000)
    parts.phantom_copy(device, many, ctypes.c_size_t(70000))
    assert ctypes.string_at(device, 5) == bytes(5), "a terabyte of zeros"
    parts.phantom_copy(device, few, ctypes.c_size_t(5))
    assert ctypes.string_at(device, 5) == b"count"
    assert parts.phantom_forget(0, device, ctypes.c_size_t(size)) == 1


class Id(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 128)]  # noqa: RUF012 - as ctypes has it


def meet(library, name, rank, last, results):
    """A rank: sums, gathers, the largest, and what the other sends; then its `last` call."""
    parts, comm, two = ctypes.CDLL(str(library)), ctypes.c_void_p(), ctypes.c_size_t(2)
    parts.ncclCommInitRank(ctypes.byref(comm), 2, Id(name), rank)
    mine = (ctypes.c_float * 2)(1 + rank, 10 * (1 + rank))
    summed, part, all_of = (ctypes.c_float * 2)(), (ctypes.c_float * 1)(), (ctypes.c_float * 4)()
    parts.ncclAllReduce(mine, summed, two, FLOAT, SUM, comm, None)
    parts.ncclReduceScatter(mine, part, ctypes.c_size_t(1), FLOAT, SUM, comm, None)
    parts.ncclAllGather(mine, all_of, two, FLOAT, comm, None)
    most, theirs = (ctypes.c_long * 1)(), (ctypes.c_float * 2)()
    one = ctypes.c_size_t(1)
    parts.ncclAllReduce((ctypes.c_long * 1)(5 - rank), most, one, LONG, MAX, comm, None)
    parts.ncclSend(mine, two, FLOAT, 1 - rank, comm, None)
    parts.ncclRecv(theirs, two, FLOAT, 1 - rank, comm, None)
    results.put((rank, [*summed], [*part], [*all_of], most[0], [*theirs]))
    results.close()
    results.join_thread()
    what, count = last[rank]
    many = (ctypes.c_float * count)()
    getattr(parts, what)(many, many, ctypes.c_size_t(count), FLOAT, SUM, comm, None)


LONG_SUM = ("ncclAllReduce", 50000)


@needs_gcc
@pytest.mark.parametrize(
    "last",
    [
        (LONG_SUM, LONG_SUM),
        (LONG_SUM, ("ncclAllReduce", 50001)),
        (LONG_SUM, ("ncclBroadcast", 50000)),
    ],
    ids=["alike", "another length", "another call"],
)
def test_two_processes_exchange_what_is_short_and_notice_what_differs(library, last, tmp_path):
    context = multiprocessing.get_context("spawn")
    results, name = context.Queue(), f"phantom-test-{os.getpid()}-{tmp_path.name}".encode()
    ranks = [
        context.Process(target=meet, args=(library, name, rank, last, results)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    found = sorted(results.get(timeout=60) for _ in ranks)
    for rank in ranks:
        rank.join(60)
    assert found == [
        (0, [3, 30], [3], [1, 10, 2, 20], 5, [2, 20]),
        (1, [3, 30], [30], [1, 10, 2, 20], 5, [1, 10]),
    ]
    ended_well = [rank.exitcode == 0 for rank in ranks]
    assert ended_well == [last[0] == last[1]] * 2


def test_what_torch_imports_is_told_apart(phantom):
    ours = ("cudaMalloc", "__cudaPushCallConfiguration", "cublasLtMatmul", "ncclAllReduce")
    others = ("cusparseCreate", "cupti", "malloc", "_ZN3c104cuda10device_countEv")
    assert [bool(phantom.IMPORTED.fullmatch(name)) for name in (*ours, *others)] == [
        *([True] * 4),
        *([False] * 4),
    ]


def test_another_host_is_told_of(phantom):
    lines = phantom.host_with(128 * 2**30).splitlines()
    told = {line.split(":")[0]: line.split()[1] for line in lines}
    assert told["MemTotal"] == told["MemAvailable"] == str(128 * 2**20)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_without_a_cuda_build_of_torch_it_says_what_to_install():
    done = subprocess.run(
        [sys.executable, HERE, "python", "-c", "pass"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "is no CUDA build" in done.stderr
