"""`giraffe plan --inference`: bytes against a real cache, arithmetic one can follow, refusals."""

from __future__ import annotations

import json
import re

import pytest
import torch
from evaluated import build_other_llama

from giraffe_cli.checkpoint import inspect
from giraffe_cli.inference.caches import CacheChoice
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.kv_formats import FORMATS
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.reading import feed
from giraffe_cli.model.stored import StoredKeyValues
from giraffe_cli.plan.inference import BANDWIDTH
from giraffe_cli.plan.inference_memory import bytes_per_token
from giraffe_cli.plan.machine import DEVICES
from giraffe_cli.plan.shapes import named_shape


def planned(giraffe, *arguments, code=0):
    result = giraffe("plan", "--inference", *arguments, "--json")
    assert result.code == code, result.stderr
    return json.loads(result.stdout), result.stderr


def by_name(found):
    return {one["kv_dtype"]: one for one in found["caches"]}


def test_bytes_of_llama_3_8b_are_those_one_computes_by_hand():
    """32 layers, 8 heads of 128, keys and values: 65,536 numbers a token."""
    shape = named_shape("llama3-8b")
    sizes = {name: bytes_per_token(shape, form, "bfloat16") for name, form in FORMATS.items()}
    assert sizes["bfloat16"] == 2 * 65536
    # a byte; 4 more for 64 tokens of a channel (keys) or 128 channels of a token (values)
    assert sizes["int8"] == 65536 + 4 * 32768 / 64 + 4 * 32768 / 128
    assert sizes["int4"] == 65536 / 2 + 4 * 32768 / 64 + 4 * 32768 / 128


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8", "int4"])
def test_they_are_those_that_a_cache_takes(tmp_path, name):
    folder = build_other_llama(tmp_path / "m")
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    kept = CacheChoice("auto" if name == "float32" else name).empty(model)
    kept.reserve(3200)
    with torch.inference_mode():
        feed(model, [7] * 3200, kept)
        feed(model, [7], kept)
    shape = inspect(str(folder), tmp_path)
    form = {"float32": FORMATS["bfloat16"], **FORMATS}[name]
    each = bytes_per_token(shape, form, "float32") * (2 if name == "float32" else 1)
    if isinstance(kept, StoredKeyValues):
        blocks = [block for layer in kept.layers for block in layer.blocks]
        written = sum(part.numel() * part.element_size() for block in blocks for part in block)
        assert written == each * 3136  # all but what stays open
    else:
        assert kept.num_bytes == pytest.approx(each * 3201, rel=0.01)


def test_the_longest_prompt_is_the_one_that_just_fits(giraffe):
    machine = ("--shape", "llama3-8b", "--device", "rtx4090")
    found, warned = planned(giraffe, *machine, "--prompt-len", "16k")
    for name, one in by_name(found).items():
        parts = dict(one["bytes"])
        assert parts.pop("total") == sum(parts.values())
        longest = one["longest_prompt"]
        at, _ = planned(giraffe, *machine, "--prompt-len", longest)
        beyond, _ = planned(
            giraffe, *machine, "--prompt-len", longest + 4, code=0 if name != "int4" else 4
        )
        assert by_name(at)[name]["fits"]
        assert not by_name(beyond)[name]["fits"]
    assert "beyond the window of 8,192" in warned


def test_smaller_keys_make_longer_prompts_and_longer_prompts_take_longer(giraffe):
    machine = ("--shape", "llama3-8b", "--device", "h100")
    short, long = (by_name(planned(giraffe, *machine, "--prompt-len", n)[0]) for n in ("4k", "8k"))
    assert short["bfloat16"]["longest_prompt"] < short["int8"]["longest_prompt"]
    assert short["int8"]["longest_prompt"] < short["int4"]["longest_prompt"]
    for name in short:
        assert long[name]["prefill_seconds"] > 2 * short[name]["prefill_seconds"]
        assert long[name]["decode_tokens_per_second"] < short[name]["decode_tokens_per_second"]


def test_this_machine_is_measured(giraffe, tiny_llama):
    found, _ = planned(giraffe, "--model", tiny_llama)
    assert found["prompt_length"] + found["max_new_tokens"] > found["window"] == 128
    if found["machine"]["kind"] == "cpu":
        assert found["pace"]["is_measured"]
    assert all(one["prefill_seconds"] > 0 for one in found["caches"])


def test_nothing_fits(giraffe):
    shape = ("--shape", "llama3-8b", "--device", "rtx4090", "--prompt-len", "1m")
    found, told = planned(giraffe, *shape, code=4)
    assert "even with keys and values in int4" in told
    assert f"--prompt-len {by_name(found)['int4']['longest_prompt']} fits" in told


def test_an_answer_that_leaves_no_prompt_room_is_the_one_to_shorten(giraffe):
    shape = ("--shape", "llama3.2-1b", "--device", "rtx4090", "--prompt-len", "64k")
    _, told = planned(giraffe, *shape, "--max-new-tokens", "9000000", code=4)
    most = int(re.search(r"hint: --max-new-tokens (\d+) fits", told)[1])
    planned(giraffe, *shape, "--max-new-tokens", str(most))
    planned(giraffe, *shape, "--max-new-tokens", str(most + 100_000), code=4)


def test_every_machine_has_a_bandwidth():
    assert set(BANDWIDTH) == set(DEVICES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--inference", "--steps", "3", "--gpus", "2"), "--steps, --gpus without effect"),
        (("--inference", "--control"), "--control without effect"),
        (("--prompt-len", "8k", "--target-len", "4k"), "--prompt-len without effect"),
    ],
)
def test_options_of_the_other_plan_are_refused(giraffe, arguments, said):
    result = giraffe("plan", *arguments)
    assert result.code == 2
    assert said in result.stderr


def test_keys_and_values_in_host_memory_leave_the_device_its_weights(giraffe):
    """8 B weights are 16.1 GB; 200k tokens' keys and values 26.9 GB, of which a token reads all
    over PCIe, at 45 GB/s."""
    asked = ("--shape", "llama3-8b", "--device", "rtx4090", "--prompt-len", "200k")
    here, _ = planned(giraffe, *asked, code=4)
    refused = giraffe("plan", "--inference", *asked)
    assert "fits; or --kv-offload, with 7.3 GB of host memory for them in int4" in refused.stderr
    away, _ = planned(giraffe, *asked, "--kv-offload", "--host-memory", "64GB")
    assert (here["kv_offload"], away["kv_offload"]) == (False, True)
    assert away["host_bytes"] == int(64e9 * 0.85)
    one, before = by_name(away)["bfloat16"], by_name(here)["bfloat16"]
    assert one["bytes"]["total"] == before["bytes"]["total"] - before["bytes"]["kv"]
    assert one["fits"]
    assert one["longest_prompt"] == pytest.approx(64e9 * 0.85 / 131072 - 256, abs=1)
    assert one["decode_tokens_per_second"] < 45e9 / one["bytes"]["kv"] < 2
    assert one["prefill_seconds"] >= before["prefill_seconds"]
    shown = giraffe("plan", "--inference", *asked, "--kv-offload", "--host-memory", "64GB")
    assert "keys and values in host memory" in " ".join(shown.stdout.split())
    assert "and 54.4 GB of the host" in " ".join(shown.stdout.split())
    little = giraffe("plan", "--inference", *asked, "--kv-offload", "--host-memory", "8GB")
    assert little.code == 4
    assert "7.3 GB of the host, of which 6.8 GB are" in " ".join(little.stderr.split())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--device", "h100", "--kv-offload"), "nobody says how much host memory h100 has"),
        (("--device", "cpu", "--kv-offload"), "--kv-offload on a CPU"),
        (("--device", "h100", "--host-memory", "64GB"), "--host-memory without effect"),
    ],
)
def test_host_memory_for_keys_is_a_gpu_s_and_said(giraffe, options, told):
    done = giraffe("plan", "--inference", "--shape", "llama3-8b", *options)
    assert done.code == 2
    assert told in " ".join(done.stderr.split())


def test_a_training_keeps_no_keys(giraffe):
    done = giraffe("plan", "--shape", "llama3-8b", "--target-len", "64k", "--kv-offload")
    assert (done.code, "--kv-offload without effect" in done.stderr) == (2, True)
