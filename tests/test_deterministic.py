"""`train.deterministic`: torch's switch for as long as it trains; on a GPU the same bytes again."""

from __future__ import annotations

import signal
import sys

import pytest
import torch
from train_runs import Hooked, adapter_bytes, build_material, metrics, run, timeless

from giraffe_cli.config.files import read_yaml
from giraffe_cli.errors import Interrupted
from giraffe_cli.train.determinism import repeatable

LONG = {"steps": 60, "checkpoint_every": 10, "windows_per_step": 4, "lora": {"rank": 2}}


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("wanted", [False, True])
def test_the_switch_is_on_while_it_trains_and_put_back(material, tmp_path, wanted):
    seen = []
    reporter = Hooked(lambda step: seen.append(torch.are_deterministic_algorithms_enabled()))
    run(material, tmp_path, reporter, steps=2, deterministic=wanted)
    assert seen == [wanted, wanted]
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_was_set_before_stands_afterwards():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_flag_is_the_key(giraffe, tiny_llama, corpus, tmp_path):
    where = ["--model", tiny_llama, "--data", corpus, "--target-len", "256", "--rope", "yarn"]
    done = giraffe(
        *("extend", *where, "--window", "64", "--steps", 0, "--no-eval", "--deterministic"),
        *("--out", tmp_path / "out"),
    )
    assert done.code == 0, done.stderr
    assert read_yaml(tmp_path / "out" / "run.yaml")["train"]["deterministic"] is True


def stopped_and_resumed(material, folder, **settings):
    stop_at_2 = Hooked(lambda step: step == 2 and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(material, folder, stop_at_2, **LONG, **settings)
    resumed = Hooked()
    run(material, folder, resumed, **LONG, **settings)
    assert any("resuming after step" in line for line in resumed.lines)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_ends_in_the_same_bytes_on_a_gpu(material, tmp_path, dtype):
    settings = {"dtype": dtype, "deterministic": True}
    run(material, tmp_path / "whole", **LONG, **settings)
    stopped_and_resumed(material, tmp_path / "resumed", **settings)
    assert timeless(tmp_path / "resumed") == timeless(tmp_path / "whole")
    assert adapter_bytes(tmp_path / "resumed") == adapter_bytes(tmp_path / "whole")


@pytest.mark.gpu
def test_without_it_a_resumed_run_ends_within_a_tolerance(material, tmp_path):
    """Sums in another order, carried on over 60 steps in bfloat16: 1e-2 nats."""
    run(material, tmp_path / "whole", dtype="bfloat16", **LONG)
    stopped_and_resumed(material, tmp_path / "resumed", dtype="bfloat16")
    pairs = zip(metrics(tmp_path / "resumed"), metrics(tmp_path / "whole"), strict=True)
    largest = max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs)
    sys.stdout.write(f"largest difference {largest:.1e} nats\n")  # -rP
    assert largest <= 1e-2
