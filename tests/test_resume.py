"""SIGKILL at every fsync and rename, and at random times: the same command ends in equal bytes.

Each case forks this process, patches `os.fsync`/`os.replace` in the child to kill it at the n-th
call, then runs the same story again to its end and compares its files with an undisturbed run.
The first story is `extend`, the second `pack-data`.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import time
import traceback

import pytest
from conftest import prose
from test_assemble import write_byte_tokenizer

from giraffe_cli.checkpoint import inspect
from giraffe_cli.claim import claim
from giraffe_cli.config.building import build
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.merge import merge_stage
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import digest_file
from giraffe_cli.stages import choose_table
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


def forked(tell, kill_at=None, kill_after=None):
    """Run the story `tell` in a child; returns (killed, fsync and rename calls made)."""
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
            tell()
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
                "held_out_every": 2,
                "held_out_windows": 2,
                "keep": "best",
                "lora": {"rank": 4, "dropout": 0.1},
            },
        }
    )


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("clean") / "run"
    started = time.monotonic()
    killed, calls = forked(lambda: story(config, run_dir))
    assert not killed
    return result(run_dir), calls, time.monotonic() - started


def resumes_after(config, run_dir, undisturbed, **kill):
    killed, _ = forked(lambda: story(config, run_dir), **kill)
    forked(lambda: story(config, run_dir))
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
def test_killed_at_30_random_times(config, undisturbed, tmp_path):
    _, _, seconds = undisturbed
    generator, kills = random.Random(0), 0
    for number in range(200):
        moment = generator.uniform(0.02, 0.7) * seconds
        kills += resumes_after(config, tmp_path / str(number), undisturbed, kill_after=moment)
        if kills == 30:
            return
    pytest.fail(f"only {kills} of 200 kills came in time")


# ── pack-data ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def packing(tmp_path_factory):
    """`packing(out)` packs 12 units, one of them of 5 blocks, as the command does."""
    folder = tmp_path_factory.mktemp("packing")
    tokenizer = write_byte_tokenizer(folder / "tokenizer")
    texts = [json.dumps({"id": f"d{i}", "text": prose(i % 90, i % 23)}) for i in range(1, 100)]
    (folder / "cut.jsonl").write_text("\n".join(texts))
    (folder / "whole.jsonl.gz").write_bytes(gzip.compress("\n".join(texts[:60]).encode()))
    settings = PackConfig(block_bytes=6000, dedupe=True, epochs=2)
    sources = [str(folder / "cut.jsonl"), str(folder / "whole.jsonl.gz")]

    def pack(out):
        pack_stage(sources, tokenizer, 256, settings, 0, out, SilentReporter(), replace=False)

    return pack


def packed_files(out):
    return {str(p.relative_to(out)): digest_file(p) for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed_packing(packing, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "packed"
    started = time.monotonic()
    killed, calls = forked(lambda: packing(out))
    assert not killed
    files = packed_files(out)
    assert not [name for name in files if name.startswith(".work")]
    assert {"manifest.json", "removed.jsonl", "rows-00000.parquet"} <= set(files)
    return files, calls, time.monotonic() - started


def packs_after(packing, out, undisturbed_packing, **kill):
    killed, _ = forked(lambda: packing(out), **kill)
    forked(lambda: packing(out))
    assert packed_files(out) == undisturbed_packing[0]
    assert not (out / ".work").exists()
    return killed


def test_packing_killed_at_some_writes(packing, undisturbed_packing, tmp_path):
    _, calls, _ = undisturbed_packing
    assert calls > 100
    for kill_at in range(2, calls + 1, calls // 7):
        out = tmp_path / str(kill_at)
        assert packs_after(packing, out, undisturbed_packing, kill_at=kill_at)


@pytest.mark.slow
def test_packing_killed_at_every_write(packing, undisturbed_packing, tmp_path):
    _, calls, _ = undisturbed_packing
    for kill_at in range(1, calls + 1):
        out = tmp_path / str(kill_at)
        assert packs_after(packing, out, undisturbed_packing, kill_at=kill_at)


@pytest.mark.slow
def test_packing_killed_at_20_random_times(packing, undisturbed_packing, tmp_path):
    _, _, seconds = undisturbed_packing
    generator, kills = random.Random(0), 0
    for number in range(200):
        moment = generator.uniform(0.02, 0.9) * seconds
        if packs_after(packing, tmp_path / str(number), undisturbed_packing, kill_after=moment):
            kills += 1
        else:  # it had ended: the machine is faster than when the clean run was timed
            seconds *= 0.9
        if kills == 20:
            return
    pytest.fail(f"only {kills} of 200 kills came in time")
