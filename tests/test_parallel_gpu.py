"""Several processes on GPUs repeat the losses of one; on one card they share it. `-m gpu`."""

from __future__ import annotations

import sys

import pytest
from train_runs import build_material, metrics, run

from giraffe_cli.progress import SilentReporter
from giraffe_cli.train.parallel import visible_gpus

pytestmark = pytest.mark.gpu
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}
"""Nats per target of a step of 128 tokens. A slice has half the rows, for which cuBLAS may choose
another kernel: in bfloat16 another sum moves an activation by 2^-8 of itself, at random."""


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def shared(processes):
    """What lets `processes` train here, however many cards there are."""
    few = visible_gpus() < processes
    return {"processes": processes, **({"share_devices": True} if few else {})}


def differences(ours, theirs):
    pairs = zip(metrics(ours), metrics(theirs), strict=True)
    return [abs(a["loss"] - b["loss"]) for a, b in pairs]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"sequence_parallel": 2},
        {"sequence_parallel": 2, "sequence_parallel_by": "keys"},
        {"shard_base": "full"},
        {"shard_base": "full", "sequence_parallel": 2, "held_out_every": 2},
        {"shard_base": "full", "method": "full"},
    ],
    ids=[
        *("own windows", "slices", "by keys", "base shared out", "base shared out, slices"),
        "every weight",
    ],
)
def test_two_processes_repeat_the_losses_of_one(material, tmp_path, dtype, layout):
    if dtype == "float32" and "sequence_parallel_by" in layout:
        pytest.skip("16 bits on a GPU")
    lora = {} if "method" in layout else {"rank": 2}
    same = {key: layout[key] for key in layout if key in ("held_out_every", "method")}
    run(material, tmp_path / "one", dtype=dtype, lora=lora, **same)
    reporter = SilentReporter()
    run(material, tmp_path / "two", reporter, dtype=dtype, lora=lora, **shared(2), **layout)
    assert any("starting 2 processes" in line for line in reporter.lines)
    found = differences(tmp_path / "two", tmp_path / "one")
    sys.stdout.write(f"{dtype} {layout}: largest difference {max(found):.1e} nats\n")  # -rP
    assert len(found) == 5
    assert max(found) <= TOLERANCE[dtype]
    for ours, theirs in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert ours["tokens"] == theirs["tokens"]
