"""The cost model against torch's own operation counter, published figures and named end-points."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.errors import DoesNotFit
from giraffe_cli.model.levers import Levers
from giraffe_cli.plan.estimate import Pace, assumed_pace, check_fits, demand_of, estimate
from giraffe_cli.plan.machine import Machine, available_bytes, named_machine, this_machine
from giraffe_cli.plan.memory import bytes_by_part
from giraffe_cli.plan.operations import Rates, adapter_numbers, forward_per_token, step_per_token
from giraffe_cli.plan.shapes import SHAPES, named_shape
from giraffe_cli.weights import expected_shapes

LAPTOP = Machine("cpu", 1, 16_000_000_000, keeps_freed=True)
H200 = named_machine("h200")
LLAMA_8B = named_shape("llama3-8b")
SMOLLM2 = named_shape("smollm2-135m")
UNIT = Pace(Rates(1e12, 1e12, 1e12), True, "made up")


def config_of(target_length="128k", dtype="auto", **train):
    return build({"target_length": target_length, "dtype": dtype, "train": train})


def plan_of(machine=H200, target_length="128k", shape=LLAMA_8B, **train):
    return estimate(shape, config_of(target_length, **train), machine, UNIT)


# ── operations ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("window", "giga"), [(8192, 54), (16384, 63), (32768, 83), (65536, 121), (131072, 199)]
)
def test_operations_per_token_of_llama_8b(window, giga):
    """With recomputation; the figures are of a table made independently of this code, which leaves
    out the adapters' own products (1 to 2 %)."""
    train = TrainConfig.model_validate({"lora": {"rank": 1}})
    found = step_per_token(LLAMA_8B, train, window, Levers("full"))
    assert found.total / 1e9 == pytest.approx(giga, rel=0.02)


def test_forward_operations_equal_torchs_counter(tiny_llama, tmp_path):
    """Eager attention multiplies the whole square, the formula counts its causal half."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaForCausalLM

    shape, length = inspect(str(tiny_llama), tmp_path), 32
    forward = forward_per_token(shape, length)
    model = LlamaForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.arange(length)[None], use_cache=False)
    angles = 2 * length * shape.head_dim // 2  # a product in some versions of transformers
    beyond = counter.get_total_flops() - length * (forward.total + forward.attention)
    assert beyond in (0, angles)


def test_kept_attention_saves_one_pass_of_it_and_a_full_fine_tune_adds_a_product():
    adapters, full = TrainConfig(), TrainConfig(method="full")
    forward = forward_per_token(LLAMA_8B, 8192)
    kept = step_per_token(LLAMA_8B, adapters, 8192, Levers("attention"))
    again = step_per_token(LLAMA_8B, adapters, 8192, Levers("full"))
    none = step_per_token(LLAMA_8B, full, 8192, Levers("none"))
    assert again.attention - kept.attention == pytest.approx(forward.attention)
    assert again.linear == kept.linear
    assert (none.linear, none.head) == (3 * forward.linear, 3 * forward.head)


def test_longce_adds_two_forward_passes_over_pieces_and_projects_each_deep_token_once():
    """At 16k with pieces of 4k: 2 F_lin, 2 F_att of 4k, 3/4 F_head, and the adapters' products."""
    plain, short = forward_per_token(LLAMA_8B, 16384), forward_per_token(LLAMA_8B, 4096)
    ce, longce = TrainConfig(), TrainConfig(loss="longce")
    assert LLAMA_8B.native_length >= 4096
    without = step_per_token(LLAMA_8B, ce, 16384, Levers("attention"))
    found = step_per_token(LLAMA_8B, longce, 16384, Levers("attention"))
    adapters = 4 * adapter_numbers(LLAMA_8B, ce)
    assert found.linear - without.linear == pytest.approx(2 * plain.linear + adapters)
    assert found.attention - without.attention == pytest.approx(2 * short.attention)
    assert found.head - without.head == pytest.approx(0.75 * plain.head)


def test_longces_pieces_go_at_the_speed_of_the_kernel_that_tells_documents_apart():
    """At 32k: 2 F_att of pieces of 4k at half the speed, beside windows of one document."""
    rates, slower = Rates(1e12, 1e12, 1e12), Rates(1e12, 1e12, 1e12, attention_packed=5e11)
    one, other = (
        estimate(LLAMA_8B, config_of("32k", loss="longce"), H200, Pace(pace, True, ""))
        for pace in (rates, slower)
    )
    pieces = 2 * forward_per_token(LLAMA_8B, 4096).attention * 32768
    more = other["seconds_per_step"] - one["seconds_per_step"]
    assert more == pytest.approx(pieces / 1e12, rel=1e-3)


def test_what_is_recomputed_beside_a_forward_pass():
    """Of SmolLM2 by tiles a token's queries, keys and values once more: 2·30·(576·576 + 2·576·192);
    where layers are fused not those, nor the last product of the MLP: 2·30·576·1536 less."""

    def linear(**levers):
        return step_per_token(SMOLLM2, TrainConfig(), 8192, Levers(**levers)).linear

    more, less = 2 * 30 * (576 * 576 + 2 * 576 * 192), 2 * 30 * 576 * 1536
    assert linear(projection_tile=1024) - linear() == pytest.approx(more)
    assert linear() - linear(fused=True) == pytest.approx(less)
    assert linear(projection_tile=1024, fused=True) == linear(fused=True)
    assert linear(checkpointing="none") == linear(checkpointing="none", fused=True)


def test_windows_of_several_documents_go_at_the_speed_of_their_own_kernel():
    """2 s of attention become 0.5 s at a quarter of it, and 1 s where its kernel has half the
    speed."""
    rates, slower = Rates(1e12, 1e12, 1e12), Rates(1e12, 1e12, 1e12, attention_packed=5e11)
    assert slower.of_documents().attention == 5e11
    assert rates.of_documents() == rates
    seconds = [
        estimate(LLAMA_8B, config_of("8k"), H200, Pace(one, True, ""), None, share)[
            "seconds_per_step"
        ]
        for one, share in ((rates, 1.0), (rates, 0.25), (slower, 1.0), (slower, 0.25))
    ]
    attention = step_per_token(LLAMA_8B, TrainConfig(), 8192, Levers("attention")).attention
    part = attention * 8192 / 1e12
    assert seconds[0] - seconds[1] == pytest.approx(0.75 * part)
    assert seconds[2] == seconds[0]
    assert seconds[2] - seconds[3] == pytest.approx(0.5 * part)
    two = dataclasses.replace(H200, devices=2)
    shared = {"processes": 2, "sequence_parallel": 2, "attention_layers": 32}
    by_heads, by_keys = (
        estimate(
            LLAMA_8B,
            config_of("8k", checkpointing="attention", sequence_parallel_by=by, **shared),
            two,
            Pace(slower, True, ""),
        )["seconds_per_step"]
        for by in ("heads", "keys")
    )
    assert by_keys - by_heads == pytest.approx(part / 2), "keys are attended to by that kernel"


def test_documents_leave_over_their_share_of_attention():
    whole, packed = (forward_per_token(LLAMA_8B, 8192, share).attention for share in (1.0, 0.25))
    assert packed == whole / 4


# ── memory ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.2-3b", 3_212_749_824),
        ("llama3.2-1b", 1_235_814_400),
        ("llama2-7b", 6_738_415_616),
        ("smollm2-1.7b", 1_711_376_384),
        ("smollm2-360m", 361_821_120),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_a_named_shape_has_the_parameters_of_the_published_model(name, parameters):
    """As the hub's pages count them."""
    shapes = expected_shapes(SHAPES[name][0])
    assert sum(math.prod(sizes) for sizes in shapes.values()) == parameters


def test_a_shape_that_is_published_scaled_is_refused_as_such_a_base(giraffe):
    """As by `--config-json`, and as `extend` would."""
    shape = named_shape("llama3.2-1b")
    assert (shape.native_length, shape.reach) == (8192, 131072)
    assert shape.base_table[0] == 1.0
    assert shape.base_table[-1] == pytest.approx(5e5 ** -(62 / 64) / 32)
    asked = ("plan", "--shape", "llama3.1-8b", "--device", "h100")
    done = giraffe(*asked, "--target-len", "256k")
    assert "rope_type `llama3` takes its 8192 native tokens to 131072" in done.stderr
    done = giraffe(*asked, "--target-len", "64k", "--set", "rope.on_existing=replace")
    assert "would refuse" not in done.stderr


def test_memory_of_an_8b_run_by_parts():
    parts = plan_of(checkpointing="full", offload="none", mlp_tile="none")["bytes"]
    assert parts["weights"] == 2 * 8_030_261_248
    assert parts["kept"] == 32 * 131072 * 4096 * 2
    # r 16 on every projection: 41.9 M numbers, each with gradient and two moments in float32
    assert parts["trained"] == pytest.approx(41.9e6 * 16, rel=0.01)
    assert parts["total"] == sum(v for name, v in parts.items() if name != "total")
    assert 75e9 < parts["total"] < 110e9


def test_memory_of_128k_with_every_lever_is_near_the_floor_that_theory_gives():
    """Weights 16 GB, one layer in tiles 6, adapters 1, loss 2: 25 to 28 GB by a table made
    independently of this code, which counts no CUDA context and no gradients beside the layer."""
    levers = {"checkpointing": "full", "offload": "host", "mlp_tile": "4k", "loss_chunk": "1k"}
    levers["offload_layers"] = 32
    assert 25e9 < plan_of(**levers)["bytes"]["total"] < 36e9


def of(
    train=None, levers=None, window="8k", kind="cuda", shape=LLAMA_8B, dtype="auto", processes=1
):
    config = config_of(window, dtype, **(train or {}))
    machine = H200 if kind == "cuda" else LAPTOP
    demand = dataclasses.replace(demand_of(shape, config, machine), processes=processes)
    return bytes_by_part(demand, levers or Levers())


def test_what_is_trained_how_counts():
    """SmolLM2 has 134.5 M weights: whole 16 bytes each, 8-bit moments 10; 4 bits of 106 M of them
    in place of 16."""
    full = of({"method": "full"}, shape=SMOLLM2)
    assert full["weights"] + full["trained"] == 16 * 134_515_008
    shared = of({"method": "full"}, Levers(shard_base=True), shape=SMOLLM2, processes=8)
    norms, ends = 61 * 576, 49152 * 576
    kept = 16 * (norms + (134_515_008 - norms) / 8)
    assert shared["weights"] + shared["trained"] == pytest.approx(kept + 2 * 4 * ends, abs=2)
    eight = of({"method": "full", "optimizer": "adamw8bit"}, shape=SMOLLM2)
    assert eight["weights"] + eight["trained"] == 10 * 134_515_008
    nf4 = of({"quantize_base": "nf4"}, shape=SMOLLM2)
    assert nf4["weights"] == pytest.approx(106.2e6 * 4.127 / 8 + 28.3e6 * 2, rel=0.001)
    plain = of(shape=SMOLLM2)
    also = of({"lora": {"also_train": ["embeddings", "norms"]}}, shape=SMOLLM2)
    assert also["trained"] - plain["trained"] == 16 * (49152 * 576 + 61 * 576)
    dora = of({"lora": {"use_dora": True}}, shape=SMOLLM2)
    assert dora["trained"] - plain["trained"] == 16 * 30 * (
        576 + 192 + 192 + 576 + 1536 + 1536 + 576
    )


def test_float32_doubles_weights_and_kept_inputs():
    half, whole = of(dtype="bfloat16"), of(dtype="float32")
    assert whole["weights"] == 2 * half["weights"]
    attention = 32 * 8192 * (2 * 4096 * 4 + 32 * 4)
    assert whole["kept"] == attention
    assert half["kept"] == 32 * 8192 * (2 * 4096 * 2 + 32 * 4)


def test_processes_that_share_a_window_hold_a_slice_each():
    alone, shared = of(), of({"sequence_parallel": 2})
    assert shared["kept"] * 2 == alone["kept"]
    assert shared["weights"] == alone["weights"]


def test_a_large_loss_chunk_moves_the_peak_into_the_loss():
    small, large = (of(levers=Levers(loss_chunk=chunk)) for chunk in (128, 8192))
    assert "layer" in small
    assert large["loss"] > 8192 * 128256 * 6
    assert "layer" not in large


def of_smollm2(window, dtype, kind="cpu", **levers):
    levers = Levers(checkpointing="full", mlp_tile=0, **levers)
    return of(levers=levers, window=window, kind=kind, shape=SMOLLM2, dtype=dtype)


def test_a_layer_and_a_loss_by_hand():
    """1,024 tokens: d = q = 576, k = 192, f = 1536, 49,152 logits. Of a recomputed layer d is what
    the projections read, the gradient and the middle, q comes once, and once again as attention's
    output; in 16 bits norms hold float32, two of the MLP and one beside it."""
    s, d, vocabulary = 1024, 576, 49152
    numbers = 3 * d + (1 + 1) * 576 + 2 * 192 + 6 * 1536 + 3 * d
    assert of_smollm2("1k", "float32", loss_chunk=64)["layer"] == 4 * s * numbers
    assert of_smollm2("1k", "bfloat16", loss_chunk=64)["layer"] == 2 * s * numbers + 3 * 4 * s * d
    whole = {"loss_chunk": 1024}
    assert of_smollm2("1k", "float32", **whole)["loss"] == 4 * s * (3 * d + vocabulary)
    narrow = 2 * s * 3 * d + 6 * s * vocabulary
    assert of_smollm2("1k", "bfloat16", **whole)["loss"] == narrow + 4 * s * d
    compiled = of_smollm2("1k", "bfloat16", "cuda", fused=True, **whole)
    assert compiled["loss"] == narrow


def test_what_a_whole_layer_keeps_by_hand():
    """Norms' inputs and outputs, q, k, v and the output, gate, up, silu, product. Compiled, norms
    keep nothing in float32, and silu(gate) is computed again."""
    s, d, f = 1024, 576, 1536
    attention = 2 * 576 + 2 * 192

    def kept(kind, dtype, is_fused):
        levers = Levers(checkpointing="none", mlp_tile=0, loss_chunk=64, fused=is_fused)
        return of(levers=levers, window="1k", kind=kind, shape=SMOLLM2, dtype=dtype)["kept"]

    for is_fused in (False, True):
        assert kept("cpu", "float32", is_fused) == 30 * s * 4 * (4 * d + attention + 4 * f)
    narrow = 30 * s * (2 * (2 * d + attention + 4 * f) + 2 * 4 * d)
    assert kept("cuda", "bfloat16", False) == kept("cpu", "bfloat16", True) == narrow
    assert kept("cuda", "bfloat16", True) == 30 * s * 2 * (4 * d + attention + 3 * f)


def test_holes_of_glibcs_heap_by_hand():
    """Over 1,024 tokens every tensor is below 32 MB: the heap is 1.75 times the layer. Over 65,536
    all but 64 tokens' logits are mapped: they alone leave a heap, 1.75 times their size."""
    small = of_smollm2("1k", "float32", loss_chunk=64)
    assert small["kept"] == 30 * 1024 * 4 * 576
    # of the 1.75 the layer is one; inputs that wait lie in blocks of their own
    assert small["heap"] == pytest.approx(0.75 * small["layer"], abs=1)
    large = of_smollm2("64k", "float32", loss_chunk=64)
    assert large["heap"] == pytest.approx(1.75 * 64 * 49152 * 4, abs=1)
    assert "heap" not in of_smollm2("1k", "float32", "cuda", loss_chunk=64)


# ── what fits ────────────────────────────────────────────────────────────────────────────────


def test_what_fits_passes_and_what_cannot_names_the_smallest_need_and_what_would():
    check_fits(plan_of(H200))
    tight = dataclasses.replace(H200, memory_bytes=24 * 10**9, name="")
    found = plan_of(tight, "64k")
    with pytest.raises(DoesNotFit, match=r"at least \d+.\d GB .* cuda has 24.0 GB") as failure:
        check_fits(found)
    assert failure.value.exit_code == 4
    for proposal in ("NF4", "--set train.quantize_base=nf4", "--window 2k", "a shorter target"):
        assert proposal in failure.value.hint
    assert "bfloat16" not in failure.value.hint  # it is in force


def test_proposals_come_with_their_numbers_and_are_not_taken():
    found = plan_of(LAPTOP, "8k", SMOLLM2, method="full")
    named = {one["how"]: one for one in found["proposals"]}
    assert {"--set train.method=lora", "--set train.optimizer=adamw8bit", "--window 2k"} <= set(
        named
    )
    assert all(one["bytes"] < found["bytes"]["total"] for one in named.values())
    on_gpus = plan_of(H200)["proposals"]
    assert any("--sequence-parallel 4" in one["how"] for one in on_gpus)


def test_a_plan_is_json_and_its_numbers_multiply_out():
    plan = plan_of(window="2k", windows_per_step=4, steps=60)
    assert plan["tokens_per_step"] == 4 * 2048
    assert plan["trained_tokens"] == 60 * 4 * 2048
    assert plan["flops"] == 60 * plan["flops_per_step"]
    # all rates are 1e12 and nothing is offloaded
    assert plan["seconds_per_step"] == pytest.approx(plan["flops_per_step"] / 1e12)
    assert plan["tokens_per_second"] * plan["seconds_per_step"] == pytest.approx(8192)
    assert json.loads(json.dumps(plan)) == plan


def test_gpus_share_the_windows_of_a_step():
    one, eight = (
        plan_of(named_machine("h100", n), "64k", windows_per_step=8, checkpointing="full")
        for n in (1, 8)
    )
    assert eight["processes"] == 8
    assert one["seconds_per_step"] == pytest.approx(8 * eight["seconds_per_step"], rel=0.01)


# ── machines ─────────────────────────────────────────────────────────────────────────────────


def test_what_is_assumed_of_this_machine_goes_by_its_threads():
    """A run plans without a trial step: two threads are an eighth of the sixteen cores assumed."""
    named, here = (
        named_machine("cpu"),
        dataclasses.replace(named_machine("cpu"), name="", threads=2),
    )
    assumed, ours = assumed_pace(named, "float32"), assumed_pace(here, "float32")
    assert ours.rates.linear == assumed.rates.linear / 8
    assert ours.rates.attention_packed is None
    assert not ours.is_measured
    assert "threads here: 2" in ours.source
    assert this_machine().threads == torch.get_num_threads()


def test_this_machine_has_memory_and_the_heap_setting_is_seen(monkeypatch):
    machine = this_machine()
    assert machine.kind in ("cpu", "cuda")
    assert machine.memory_bytes > 1e8
    if machine.kind == "cpu":
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
        assert not this_machine().keeps_freed
        monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
        assert this_machine().keeps_freed


def test_available_memory_is_what_is_left_and_a_containers_limit_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroup.mkdir()
    (proc / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    2000000 kB\n")
    (proc / "self" / "statm").write_text("900 100 50 1 0 60 0\n")
    own = available_bytes(proc, cgroup) - 2_000_000 * 1024
    assert own > 0  # 100 pages that this process has already
    (cgroup / "memory.max").write_text("1000000000\n")
    (cgroup / "memory.current").write_text("700000000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 50000000\nactive_file 0\n")
    assert available_bytes(proc, cgroup) == own + 350_000_000
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes(proc, cgroup) == own + 2_000_000 * 1024


# ── what the guide says ──────────────────────────────────────────────────────────────────────


def longest_windows():
    """Card, base, projection tile, offload and thousands of tokens, of the guide's table."""
    text = (Path(__file__).parent.parent / "docs" / "memory.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if re.search(r"\d+k \|$", line)]
    card = ""
    for name, base, *tokens in ([cell.strip() for cell in row] for row in rows):
        card = re.sub(r",.*| ", "", name).lower() or card
        for place, cell in enumerate(tokens):
            tile = 4096 if place % 2 else "none"
            offload = "auto" if place > 1 else "none"
            yield card, {"16 bits": "none", "NF4": "nf4"}[base], tile, offload, cell


@pytest.mark.parametrize(("card", "base", "tile", "offload", "tokens"), list(longest_windows()))
def test_the_longest_windows_of_the_guide_are_the_plans(card, base, tile, offload, tokens):
    """They fit, and a thousand tokens more do not."""
    thousands = int(tokens.rstrip("k").replace(",", ""))
    knobs = {"projection_tile": tile, "quantize_base": base, "offload": offload}
    longer = thousands + 1
    fits = [plan_of(named_machine(card), f"{n}k", **knobs)["fits"] for n in (thousands, longer)]
    assert fits == [True, False]
