"""The cost model against torch's own operation counter, published figures and named end-points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.config import build
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.plan import Machine, check_fits, estimate, flops_per_token, this_machine

LAPTOP = Machine("cpu", 1, 16_000_000_000, keeps_freed=True)
H200 = Machine("cuda", 1, 140_000_000_000)
LLAMA_8B = Checkpoint(
    source="meta-llama/Llama-3.1-8B",
    path=Path("nowhere"),
    digest="",
    head_dim=128,
    rope_theta=5e5,
    native_length=8192,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    tie_word_embeddings=False,
    dtype="bfloat16",
    num_parameters=8_030_261_248,
    existing_rope=None,
)


def plan_of(machine=H200, target_length="128k", shape=LLAMA_8B, **train):
    return estimate(shape, build({"target_length": target_length, "train": train}), machine)


@pytest.mark.parametrize(
    ("window", "giga"), [(8192, 54), (16384, 63), (32768, 83), (65536, 121), (131072, 199)]
)
def test_operations_per_token_of_llama_8b(window, giga):
    """With recomputation; the figures are of a table made independently of this code."""
    assert flops_per_token(LLAMA_8B, window, True) / 1e9 == pytest.approx(giga, rel=0.02)


def test_forward_operations_equal_torchs_counter(tiny_llama, tmp_path):
    """Eager attention multiplies the whole square, the formula counts its causal half."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    shape, length = inspect(str(tiny_llama), tmp_path), 32
    recomputed = flops_per_token(shape, length, True) - flops_per_token(shape, length, False)
    attention = 2 * shape.num_layers * shape.num_attention_heads * shape.head_dim * length
    head = 2 * shape.hidden_size * shape.vocab_size
    model = LlamaForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(length)[None], use_cache=False)
    assert counter.get_total_flops() == length * (recomputed + attention + head)


def test_memory_of_an_8b_run_by_parts():
    parts = plan_of()["bytes"]
    assert parts["weights"] == 2 * 8_030_261_248
    assert parts["layer_inputs"] == 32 * 131072 * 4096 * 2
    # r 16 on every projection: 41.9 M numbers of 16 bytes
    assert parts["adapter_and_optimizer"] == pytest.approx(41.9e6 * 16, rel=0.01)
    assert parts["total"] == sum(v for name, v in parts.items() if name != "total")
    assert 75e9 < parts["total"] < 110e9


def test_every_lever_shrinks_the_total():
    whole = plan_of()["bytes"]["total"]
    assert plan_of(window="8k")["bytes"]["total"] < whole
    assert plan_of(loss_chunk=256)["bytes"]["total"] < whole
    assert plan_of(lora={"rank": 4})["bytes"]["total"] < whole
    assert plan_of(checkpointing="none")["bytes"]["total"] > whole


def test_tokens_and_operations_multiply_out():
    plan = plan_of(window="2k", windows_per_step=4, steps=60)
    assert plan["tokens_per_step"] == 4 * 2048
    assert plan["trained_tokens"] == 60 * 4 * 2048
    assert plan["flops_per_step"] == 8192 * flops_per_token(LLAMA_8B, 2048, True)
    assert plan["flops"] == 60 * plan["flops_per_step"]
    assert json.loads(json.dumps(plan)) == plan


def test_what_fits_passes_and_what_cannot_names_the_levers():
    check_fits(plan_of(H200))
    with pytest.raises(DoesNotFit, match=r"this machine's cpu has 16.0 GB") as failure:
        check_fits(plan_of(LAPTOP))
    assert failure.value.exit_code == 4
    for lever in ("--window 2k", "MALLOC_MMAP_THRESHOLD_", "shorter --target-len, such as 64k"):
        assert lever in failure.value.hint
    assert "bfloat16" not in failure.value.hint  # it is in force


def test_this_machine_has_memory_and_the_heap_lever_counts(monkeypatch):
    machine = this_machine()
    assert machine.kind in ("cpu", "cuda")
    assert machine.memory_bytes > 1e9
    if machine.kind == "cpu":
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
        spared = plan_of(this_machine())["bytes"]
        monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
        assert spared["heap"] == 0 < plan_of(this_machine())["bytes"]["heap"]
