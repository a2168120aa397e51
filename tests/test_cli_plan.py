"""`giraffe plan` and `--dry-run`: the same figures, for machines that are here and that are not."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from giraffe_cli.plan.shapes import SHAPES

CONFIGS = Path(__file__).parent.parent / "configs"


def plan_json(giraffe, *arguments, code=0):
    result = giraffe("plan", *arguments, "--json")
    assert result.code == code, result.stderr
    return json.loads(result.stdout)


def test_a_machine_one_does_not_have(giraffe):
    found = plan_json(giraffe, "--shape", "llama3-8b", "--target-len", "128k", "--device", "h100")
    (stage,) = found["stages"]
    estimate = stage["estimate"]
    assert estimate["machine"]["memory_bytes"] == 80 * 10**9
    assert estimate["fits"]
    assert estimate["levers"]["checkpointing"] == "attention"
    assert estimate["pace"]["is_measured"] is False
    assert "estimate: h100" in estimate["pace"]["source"]
    (taken,) = [rung for rung in estimate["ladder"] if rung["taken"]]
    assert taken["bytes"] == estimate["bytes"]["total"]


def test_less_memory_pulls_more_levers_and_gpus_are_shared(giraffe):
    shape = ("--shape", "llama3-8b", "--target-len", "128k")
    tight = plan_json(giraffe, *shape, "--device", "h100", "--device-memory", "40GB")
    assert tight["stages"][0]["estimate"]["levers"]["offload"] == "host"
    eight = plan_json(giraffe, *shape, "--gpus", "8", "--set", "train.windows_per_step=16")
    assert eight["stages"][0]["estimate"]["processes"] == 8


def test_when_nothing_fits_the_plan_is_shown_and_the_code_is_4(giraffe):
    arguments = ("--shape", "llama3-8b", "--target-len", "64k", "--device", "rtx4090")
    result = giraffe("plan", *arguments)
    assert result.code == 4
    assert "the ladder" in result.stdout
    assert "training needs at least" in result.stderr
    assert "--set train.quantize_base=nf4" in result.stderr
    assert not plan_json(giraffe, *arguments, code=4)["stages"][0]["estimate"]["fits"]


def test_extend_refuses_before_loading_what_does_not_fit(giraffe, tiny_llama, corpus, tmp_path):
    """A tiny model whose full fine-tune of a window of a million tokens no machine here holds."""
    out = tmp_path / "run"
    arguments = ("--model", tiny_llama, "--data", corpus, "--target-len", "16m", "--out", out)
    result = giraffe("extend", *arguments, "--no-eval", "--set", "train.checkpointing=none")
    assert result.code == 4
    assert "largest part is" in result.stderr
    assert not out.exists()


def test_this_machine_is_measured_by_a_trial_step(giraffe, tiny_llama):
    found = plan_json(
        giraffe, "--model", tiny_llama, "--target-len", "512", "--window", "128", "--steps", "7"
    )
    estimate = found["stages"][0]["estimate"]
    if estimate["machine"]["kind"] == "cpu":
        assert estimate["pace"]["is_measured"]
    assert estimate["seconds"] == pytest.approx(7 * estimate["seconds_per_step"])


def test_stages_and_control_are_planned_each(giraffe, tiny_llama):
    arguments = ("--model", tiny_llama, "--stages", "256,512", "--control", "--steps", "2")
    found = plan_json(giraffe, *arguments)
    assert [stage["target_length"] for stage in found["stages"]] == [256, 512]
    assert [stage["estimate"]["window"] for stage in found["control"]] == [128, 128]


def test_a_dry_run_shows_the_ladder(giraffe, tiny_llama, corpus, tmp_path):
    arguments = ("--model", tiny_llama, "--data", corpus, "--target-len", "512")
    shown = giraffe("extend", *arguments, "--dry-run", "--out", tmp_path / "run")
    assert shown.code == 0, shown.stderr
    assert "the ladder" in shown.stdout
    assert "> activations kept" in shown.stdout
    assert "would write" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_proposals_are_told_where_nothing_fits(giraffe):
    shape = ("--shape", "llama3-8b", "--target-len", "64k", "--device")
    fits, too_small = (giraffe("plan", *shape, device) for device in ("h100", "rtx4090"))
    assert (fits.code, too_small.code) == (0, 4)
    assert "share each window" not in fits.stdout
    assert "share each window over 2 GPUs" in too_small.stdout
    assert "PoSE (--window 2k); it may not teach the use of far text" in too_small.stdout


def test_whose_speeds_a_plan_takes_is_told(giraffe):
    shape = ("plan", "--shape", "smollm2-135m", "--target-len", "16k")
    assumed = giraffe(*shape, "--gpus", "2")
    assert "speeds: h100 assumed, pass --device\n" in assumed.stderr
    assert "of that peak: matrix products 56 %, attention 56 % (30 % where" in assumed.stdout
    here = giraffe("plan", "--inference", "--shape", "smollm2-135m", "--device-memory", "40GB")
    assert "speeds: those of this machine, pass --device for another's" in here.stderr
    assert "speeds: " not in giraffe(*shape, "--gpus", "2", "--device", "a100").stderr


def test_a_plan_says_what_extend_would_refuse(giraffe):
    planned = giraffe("plan", "--shape", "smollm2-135m", "--target-len", "8k", "--device", "h100")
    assert planned.code == 0, planned.stderr
    assert (
        "warning: giraffe extend would refuse this: smollm2-135m already reaches" in planned.stderr
    )


def test_a_scaled_config_is_planned_for_with_the_window_it_reaches(giraffe, tmp_path):
    scaling = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 384}
    config |= {**sizes, "num_attention_heads": 4, "max_position_embeddings": 1024}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "rope_theta": 5e5, "rope_scaling": scaling}))
    model = ("--config-json", path, "--device", "h100")
    planned = giraffe("plan", *model, "--target-len", "1k")
    assert "native window 128, scaled to 1k; on h100" in planned.stderr
    assert "would refuse this" in planned.stderr
    assert "already reaches 1024 tokens" in planned.stderr
    assert "is already scaled" in giraffe("plan", *model, "--target-len", "4k").stderr
    assert json.loads(giraffe("plan", "--inference", *model, "--json").stdout)["window"] == 1024


def test_columns_of_inference_have_units_and_whole_numbers_in_80_columns(giraffe, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    told = giraffe("plan", "--inference", "--shape", "llama3-8b", "--device", "h100").stdout
    assert "tokens/s" in told
    assert "…" not in told


def test_the_help_names_every_shape(giraffe):
    told = giraffe("plan", "--help").stdout
    assert all(name in told for name in SHAPES)


def test_a_config_json_without_weights(giraffe, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    file = ("--config-json", tmp_path / "config.json")
    bare = plan_json(giraffe, *file, "--target-len", "512", "--device", "a100")
    whole = plan_json(giraffe, "--model", tiny_llama, "--target-len", "512", "--device", "a100")
    assert bare["parameters"] == whole["parameters"]
    same = (found["stages"][0]["estimate"]["bytes"] for found in (bare, whole))
    assert next(same) == next(same)


def test_a_preset_is_planned_for_a_named_shape(giraffe):
    config = ("--config", CONFIGS / "llama3-8b-64k.yaml")
    found = plan_json(giraffe, *config, "--shape", "llama3-8b", "--device", "h200")
    assert found["stages"][0]["estimate"]["steps"] == 300


def test_the_commands_of_the_guide_run(giraffe):
    """Those of docs/memory.md that need no model of one's own."""
    text = (CONFIGS.parent / "docs" / "memory.md").read_text(encoding="utf-8")
    lines = re.findall(r"^giraffe (plan --shape .*|plan --config .*)$", text, flags=re.M)
    assert len(lines) >= 4
    for line in lines:
        assert giraffe(*shlex.split(line)).code in (0, 4), line


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--shape", "llama9"), 2, "--shape llama9: no such choice"),
        (("--device-memory", "80"), 2, "--device-memory 80: 80 bytes\n\nhint: write 80GB"),
        (("--device-memory", "24000k"), 2, "24,000,000 bytes\n\nhint: write 80GB, or 600MB"),
        (("--shape", "llama3-8b", "--model", "calf"), 2, "name one model"),
        (("--device", "h1000"), 2, "did you mean `h100` or"),
        (("--device", "cpu", "--gpus", "2"), 2, "leave one out"),
        (("--device-memory", "much"), 3, "`much` is not a size"),
        (
            ("--shape", "smollm2-135m", "--device", "cpu", "--set", "train.offload=host"),
            3,
            "host has no effect on a CPU",
        ),
    ],
)
def test_bad_input_is_named(giraffe, options, code, text):
    refused = giraffe("plan", "--target-len", "16k", *options)
    assert refused.code == code, refused.stderr
    assert text in refused.stderr
    assert refused.stdout == ""


def test_sharing_windows_halves_what_grows_with_them(giraffe):
    """One flag in `plan` and `extend`: what is kept and one layer at work are a slice's."""
    command = ["plan", "--shape", "llama3-8b", "--target-len", "128k", "--device", "h100", "--json"]
    command += ["--set", "train.checkpointing=full", "--set", "train.offload=none"]
    alone, shared = (
        json.loads(giraffe(*command, *more).stdout)["stages"][0]["estimate"]["bytes"]
        for more in ([], ["--gpus", 2, "--sequence-parallel", 2])
    )
    assert shared["kept"] == alone["kept"] // 2
    assert shared["weights"] == alone["weights"]
