"""SIGKILL at every fsync and rename, and at random times: the same command ends in equal bytes.

Each case forks this process, patches `os.fsync`/`os.replace` in the child to kill it at the n-th
call, then runs the same story again to its end and compares the weights with an undisturbed run.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback

import pytest

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config import build
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.merge import merge_stage
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import digest_file
from giraffe_cli.stages import choose_table, claim
from giraffe_cli.train.loop import train_stage


def story(config, run_dir):
    """inspect → pack → train → merge: every stage that writes weights or what they come from."""
    reporter = SilentReporter()
    checkpoint = inspect(config.model, run_dir)
    table = choose_table(config, checkpoint)
    claim(config, run_dir)
    packed = run_dir / "packed"
    pack_stage(config.data, checkpoint.path, 128, config.pack, config.seed, packed, reporter)
    trained = train_stage(
        checkpoint,
        table,
        packed,
        config.train,
        positions="pose",
        target_length=config.target_length,
        dtype="float32",
        seed=config.seed,
        run_dir=run_dir,
        reporter=reporter,
    )
    merge_stage(checkpoint, trained.adapter_dir, table, run_dir / "model", reporter)


def forked(config, run_dir, kill_at=None, kill_after=None):
    """Run the story in a child; returns (killed, fsync and rename calls made)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            calls = 0

            def counted(function):
                def call(*args, **kwargs):
                    nonlocal calls
                    calls += 1
                    if calls == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return function(*args, **kwargs)

                return call

            os.fsync, os.replace = counted(os.fsync), counted(os.replace)
            story(config, run_dir)
            os.write(write_end, str(calls).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write_end)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    counted_calls = int(os.read(read_end, 16) or 0)
    os.close(read_end)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the story failed"
    return os.WIFSIGNALED(status), counted_calls


def result(run_dir):
    return {
        str(p.relative_to(run_dir)): digest_file(p)
        for folder in ("packed", "adapter", "model")
        for p in sorted((run_dir / folder).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def config(tiny_llama, corpus):
    return build(
        {
            "model": str(tiny_llama),
            "data": [str(corpus)],
            "target_length": 512,
            "train": {
                "steps": 5,
                "window": 128,
                "checkpoint_every": 2,
                "warmup_steps": 1,
                "windows_per_step": 2,
                "lora": {"rank": 4, "dropout": 0.1},
            },
        }
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("clean") / "run"
    started = time.monotonic()
    killed, calls = forked(config, run_dir)
    assert not killed
    return result(run_dir), calls, time.monotonic() - started


def resumes_after(config, run_dir, undisturbed, **kill):
    killed, _ = forked(config, run_dir, **kill)
    forked(config, run_dir)
    assert result(run_dir) == undisturbed[0]
    assert not list(run_dir.rglob("*.partial"))
    return killed


def test_killed_at_some_writes(config, undisturbed, tmp_path):
    _, calls, _ = undisturbed
    assert calls > 20
    for kill_at in range(3, calls + 1, max(1, calls // 8)):
        assert resumes_after(config, tmp_path / str(kill_at), undisturbed, kill_at=kill_at)


@pytest.mark.slow
def test_killed_at_every_write(config, undisturbed, tmp_path):
    _, calls, _ = undisturbed
    for kill_at in range(1, calls + 1):
        assert resumes_after(config, tmp_path / str(kill_at), undisturbed, kill_at=kill_at)


@pytest.mark.slow
def test_killed_at_random_times(config, undisturbed, tmp_path):
    _, _, seconds = undisturbed
    generator = random.Random(0)
    kills = sum(
        resumes_after(
            config,
            tmp_path / str(n),
            undisturbed,
            kill_after=generator.uniform(0.02, 0.7) * seconds,
        )
        for n in range(20)
    )
    assert kills >= 8
