"""`scripts/bench_plan_gpu.py` without a GPU: what it would measure, and what it says of it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from conftest import load_script

from giraffe_cli.plan.memory import bytes_by_part


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_plan_gpu")


def test_every_setting_has_a_name_of_its_own_and_is_one_that_can_be_trained(bench):
    cells = bench.settings()
    assert len({bench.name_of(cell) for cell in cells}) == len(cells) > 50
    named = load_script("gpu_cells").Cell.named
    knobs = load_script("bench_plan").train_config
    for cell in cells:
        if "large" in cell:
            place, _, given = cell["large"].partition(":")
            assert named(f"{place}/ours:{given}").path == "ours"
            continue
        if "answer" in cell:
            shape, length, *_ = cell["answer"].split("/")
            assert named(f"{shape}/{length}/one/ours").length >= 16384
            continue
        changes = json.loads(cell["small"])
        extra = {"model", "documents", "dtype"}
        wanted = {k: v for k, v in {**bench.PLAIN, **changes}.items() if k not in extra}
        train = {k: v for k, v in wanted.items() if v is not None}
        assert knobs({"train": train, "length": bench.LENGTH}).window == bench.LENGTH


def test_the_error_is_of_all_but_cuda_s_context(bench):
    from giraffe_cli.config.train import TrainConfig
    from giraffe_cli.model.levers import Levers
    from giraffe_cli.plan.demand import Demand
    from giraffe_cli.plan.shapes import named_shape

    train = TrainConfig.model_validate({"checkpointing": "full"})
    demand = Demand(named_shape("llama3-8b"), train, "bfloat16", 8192, kind="cuda")
    parts = bytes_by_part(demand, Levers("full"))
    found = bench._predicted(demand, Levers("full"))
    assert found["predicted_bytes"] == sum(
        size for name, size in parts.items() if name not in ("process", "total")
    )


def test_the_table_names_what_was_allocated_and_predicted(bench):
    row = {"setting": "8b", "allocated_bytes": 2e9, "predicted_bytes": 2.1e9, "error": 0.05}
    assert bench.table([row]).splitlines()[-1] == "| 8b | 2.00 GB | 2.10 GB | +5.0% |"


def test_a_pattern_that_nothing_has_ends_with_a_setting_that_exists(bench, tmp_path):
    command = [sys.executable, bench.__file__, "--only", "9b", "--cells", tmp_path / "cells"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "8b/8k/one" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_device_it_says_where_to_run_it(bench, tmp_path):
    command = [sys.executable, bench.__file__, "--cells", tmp_path / "cells"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "scripts/phantom" in done.stderr


def test_settings_of_several_processes_are_known(bench):
    counts = [bench.processes_of(cell) for cell in bench.settings()]
    assert counts.count(2) == 9
    assert set(counts) == {1, 2}
