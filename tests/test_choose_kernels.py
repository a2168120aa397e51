"""Which attention kernel a job trains with, without a GPU: what the probe is asked, what taken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.kernels import KERNELS
from giraffe_cli.model.probe import AttentionShape, Probed
from giraffe_cli.train import setup
from giraffe_cli.train.setup import choose_kernels

FOUND = [Probed("cudnn", 500.0), Probed("flash", 300.0), Probed("efficient", 100.0)]
GPU, CPU = torch.device("cuda"), torch.device("cpu")
BY_KEYS = {"sequence_parallel": 2, "sequence_parallel_by": "keys"}


@pytest.fixture
def asked(monkeypatch):
    """What `probe` was asked, and other processes' findings beside this one's."""
    heard = SimpleNamespace(calls=[], others=[], found=FOUND)

    def probe(*given):
        heard.calls.append(given)
        return heard.found

    monkeypatch.setattr(setup, "probe", probe)
    monkeypatch.setattr(setup, "told_by_all", lambda mine: [mine, *heard.others])
    return heard


def job(dtype="bfloat16", **train):
    shape = SimpleNamespace(num_attention_heads=32, num_key_value_heads=8, head_dim=128)
    return SimpleNamespace(config=TrainConfig(**train), checkpoint=shape, dtype=dtype, window=4096)


def test_the_fastest_of_torchs_own_is_taken_of_the_heads_a_process_has(asked):
    kernels, told = choose_kernels(job(), 0.0, GPU)
    assert type(kernels.one) is KERNELS["cudnn"]
    assert "taken: cudnn" in told
    shape, dtype, tokens, _device, wanted, of_tails = asked.calls[0]
    assert shape == AttentionShape(32, 8, 128)
    assert (dtype, tokens, wanted, of_tails) == (torch.bfloat16, 4096, "auto", False)
    choose_kernels(job(sequence_parallel=16), 0.0, GPU)
    assert asked.calls[1][0] == AttentionShape(2, 1, 128)


def test_all_processes_go_by_what_all_found(asked):
    asked.others = [[Probed("cudnn", 200.0), Probed("flash", 310.0), Probed("efficient", 90.0)]]
    kernels, told = choose_kernels(job(), 0.0, GPU)
    assert type(kernels.one) is KERNELS["flash"]
    assert "flash 300 TFLOP/s, cudnn 200 TFLOP/s" in told


def test_by_keys_flash_attends_with_all_heads_and_is_checked_at_tails(asked):
    kernels, _told = choose_kernels(job(**BY_KEYS), 0.0, GPU)
    assert type(kernels.one) is type(kernels.several) is KERNELS["flash"]
    shape, *_, wanted, of_tails = asked.calls[0]
    assert (shape.heads, wanted, of_tails) == (32, "flash", True)
    asked.found = [Probed("cudnn", 500.0), Probed("flash", obstacle="head_dim 512")]
    with pytest.raises(InvalidInput, match="flash: head_dim 512") as failure:
        choose_kernels(job(**BY_KEYS), 0.0, GPU)
    assert "sequence_parallel_by=heads" in failure.value.hint


def test_nothing_is_chosen_on_a_cpu_or_under_dropout(asked):
    assert choose_kernels(job(), 0.0, CPU) == (None, "")
    assert choose_kernels(job(), 0.1, GPU) == (None, "")
    assert not asked.calls


@pytest.mark.parametrize(
    ("dropout", "dtype", "device", "words"),
    [
        (0.1, "bfloat16", CPU, "the checkpoint's attention_dropout is 0.1"),
        (0.0, "float32", GPU, "attends in 16 bits on a GPU, the run computes in float32"),
    ],
)
def test_by_keys_what_nothing_attends_with_is_refused(asked, dropout, dtype, device, words):
    with pytest.raises(InvalidInput, match=words) as failure:
        choose_kernels(job(dtype, **BY_KEYS), dropout, device)
    assert "sequence_parallel_by=heads" in failure.value.hint
    choose_kernels(job("float32", **BY_KEYS), 0.0, CPU)


@pytest.mark.parametrize("kernel", ["cudnn", "flash4"])
def test_a_kernel_that_adds_in_any_order_is_no_kernel_of_a_training_that_repeats_itself(kernel):
    with pytest.raises(ValueError, match=f"attention_kernel: {kernel} adds in any order"):
        TrainConfig(deterministic=True, attention_kernel=kernel)
