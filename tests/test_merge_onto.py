"""An extension carried over to a sibling: against PEFT, sums made here, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli_verify import write_run
from tiny_runs import TARGET, make_adapter, make_base, prove, table_for

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import InvalidInput
from giraffe_cli.merge import merge_stage
from giraffe_cli.merge_onto import adapter_for, check_sibling
from giraffe_cli.model.full import save_full
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import finish_stage, write_json

QUIET = SilentReporter()
EMBEDDINGS, NORM = "model.embed_tokens.weight", "model.norm.weight"
MOVED = 0.1
"""Relative size of what the sibling learnt."""


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def make_sibling(folder: Path, base: Path, added_tokens: int = 0, moved: float = MOVED) -> Path:
    """`base` with every matrix moved by `moved` of its size, norms too, and some rows more."""
    shutil.copytree(base, folder)
    weights, generator = weights_of(folder), torch.Generator().manual_seed(5)
    for name, weight in weights.items():
        step = torch.randn(weight.shape, generator=generator)
        change = moved * step * weight.float().norm() / step.norm()
        weights[name] = (weight.float() + change).to(weight.dtype)
        if added_tokens and name in (EMBEDDINGS, "lm_head.weight"):
            rows = torch.full((added_tokens, weight.shape[1]), 0.5, dtype=weight.dtype)
            weights[name] = torch.cat([weights[name], rows])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += added_tokens
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def train_whole_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Change all but LoRA matrices in an adapter's `file`; a tied head as the embeddings."""
    tensors = load_file(file)
    for key in tensors:
        if "lora_" not in key:
            generator = torch.Generator().manual_seed(tensors[key].numel())
            tensors[key] += 0.01 * torch.randn(tensors[key].shape, generator=generator)
    save_file(tensors, file, {"format": "pt"})
    return tensors


def carry(adapter: Path, base: Path, sibling: Path, folder: Path) -> tuple[Path, Path, float]:
    """The merged sibling, the adapter that was merged, the distance."""
    opened = [inspect(str(one), one) for one in (base, sibling)]
    distance = check_sibling(*opened, QUIET)
    carried = adapter_for(adapter, *opened, folder / "carried", QUIET)
    out = merge_stage(opened[1], carried, table_for(base), folder / "out", QUIET)
    return out, carried, distance


def proof_of(out: Path, carried: Path, sibling: Path) -> dict:
    table = table_for(sibling)
    return prove(out, adapter_dir=carried, base=sibling, table=table)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_a_lora_is_added_as_peft_adds_it(tmp_path, settings):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make_base(tmp_path / "base")
    sibling = make_sibling(tmp_path / "sibling", base)
    adapter = make_adapter(tmp_path / "adapter", base, **settings)
    out, carried, distance = carry(adapter, base, sibling, tmp_path)
    assert carried == adapter
    assert distance == pytest.approx(MOVED, rel=1e-4)
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(sibling, dtype=torch.float32)
        expected = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    found = weights_of(out)
    assert found.keys() == weights_of(sibling).keys()
    for name, tensor in found.items():
        # one float32 sum of rank 4, added in another order
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    proof = proof_of(out, carried, sibling)
    assert proof["ok"], proof["checks"]


@pytest.mark.parametrize("added_tokens", [0, 3])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_tensors_trained_whole_move_the_siblings(tmp_path, monkeypatch, tied, added_tokens):
    """LongLoRA's embeddings and norms: what training added to the base's, on the sibling's."""
    monkeypatch.setattr("giraffe_cli.merge_onto.BLOCK", 100 * 64)  # 100 rows of the embeddings
    base = make_base(tmp_path / "base", tie_word_embeddings=tied)
    sibling = make_sibling(tmp_path / "sibling", base, added_tokens)
    whole = ["embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"]
    adapter = make_adapter(
        tmp_path / "adapter", base, modules_to_save=whole, ensure_weight_tying=tied
    )
    trained = train_whole_tensors(adapter / "adapter_model.safetensors")
    out, carried, _ = carry(adapter, base, sibling, tmp_path)
    assert carried == tmp_path / "carried"
    before, now, found = weights_of(base), weights_of(sibling), weights_of(out)
    for name in (EMBEDDINGS, NORM, "model.layers.1.input_layernorm.weight"):
        learnt = trained[f"base_model.model.{name}"] - before[name]
        expected = now[name].clone()
        expected[: len(learnt)] += learnt
        assert not torch.equal(expected, now[name])
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)
    proof = proof_of(out, carried, sibling)
    assert proof["ok"], proof["checks"]


def test_every_weight_trained_moves_every_weight_in_the_siblings_type(tmp_path):
    base = make_base(tmp_path / "base", torch.bfloat16)
    sibling = make_sibling(tmp_path / "sibling", base)
    generator = torch.Generator().manual_seed(3)
    before, now = weights_of(base), weights_of(sibling)
    trained = {
        name: weight.float() + 0.01 * torch.randn(weight.shape, generator=generator)
        for name, weight in before.items()
    }
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_full(trained, adapter, table_for(base), str(base))
    out, carried, _ = carry(adapter, base, sibling, tmp_path)
    for name, tensor in weights_of(out).items():
        expected = now[name].float() + (trained[name] - before[name].float())
        assert torch.equal(tensor, expected.to(torch.bfloat16))
    proof = proof_of(out, carried, sibling)
    assert proof["ok"], proof["checks"]


def test_a_dora_is_refused(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, use_dora=True)
    with pytest.raises(InvalidInput, match="is a DoRA: the norms") as refused:
        carry(adapter, base, base, tmp_path)
    assert "train without lora.dora" in refused.value.hint
    assert not (tmp_path / "carried").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
            r"rope_theta 500000.0 \(base 10000.0\)",
        ),
        ({"num_key_value_heads": 4}, r"num_key_value_heads 4 \(base 2\)"),
        ({"max_position_embeddings": 64}, r"native_length 64 \(base 128\)"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            r": linear to 256 tokens \(base not scaled\)",
        ),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings False \(base True\)"),
    ],
)
def test_another_shape_or_table_is_no_sibling(tmp_path, changes, words):
    base = make_base(tmp_path / "base")
    other = make_base(tmp_path / "other", **changes)
    with pytest.raises(InvalidInput, match=words):
        check_sibling(inspect(str(base), base), inspect(str(other), other), QUIET)


def test_fewer_tokens_are_no_sibling(tmp_path):
    base, other = make_base(tmp_path / "base", vocab_size=390), make_base(tmp_path / "other")
    with pytest.raises(InvalidInput, match=r"vocab_size 384 \(base 390\)"):
        check_sibling(inspect(str(base), base), inspect(str(other), other), QUIET)


def test_weights_of_another_model_are_no_sibling(tmp_path):
    """Independent weights of one size lie √2 of it away."""
    base = make_base(tmp_path / "base")
    other = make_sibling(tmp_path / "other", base)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(weight.shape, generator=generator) * weight.std()
        if weight.dim() == 2
        else weight
        for name, weight in weights_of(base).items()
    }
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="weights lie 14[12]% of their size away"):
        check_sibling(inspect(str(base), base), inspect(str(other), other), QUIET)


# ── giraffe merge --onto ─────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(tmp_path) -> Path:
    base, folder = make_base(tmp_path / "base"), tmp_path / "run"
    make_adapter(folder / "adapter", base, modules_to_save=["norm"])
    write_json(folder / "adapter" / "rope.json", table_for(base).to_json())
    finish_stage(folder / "adapter", {"stage": "train"})
    write_run(folder, base, steps=3)
    return folder


def test_the_command_says_what_it_moved(giraffe, run, tmp_path):
    sibling, out = make_sibling(tmp_path / "sibling", tmp_path / "base"), tmp_path / "mine"
    done = giraffe("merge", run, "--onto", sibling, "--out", out)
    assert done.code == 0, done.stderr
    assert f"onto: {sibling}, whose weights lie 10.00% from the run's base" in done.stdout
    assert f"next: giraffe eval {out} --base {sibling} --data TEXT" in done.stdout
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == TARGET
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "mine", "run", "sibling"]

    again = giraffe("merge", run, "--onto", sibling, "--out", out, "--json")
    assert "holds the merged model already" in again.stderr
    value = json.loads(again.stdout)
    assert value["onto"] == {"model": str(sibling), "distance": pytest.approx(MOVED, rel=1e-4)}
    assert value["verify"]["checks"]["logits_far"]["ok"]


def test_without_training_the_table_alone_goes_over(giraffe, tmp_path):
    base = make_base(tmp_path / "base")
    sibling, out = make_sibling(tmp_path / "sibling", base), tmp_path / "mine"
    write_run(tmp_path / "zero", base, steps=0)
    done = giraffe("merge", tmp_path / "zero", "--onto", sibling, "--out", out)
    assert done.code == 0, done.stderr
    expected = weights_of(sibling)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(out).items())


@pytest.mark.parametrize("out", [[], ["--out", "run/model"]])
def test_it_needs_a_folder_of_its_own(giraffe, run, tmp_path, monkeypatch, out):
    """The run's model is what its report and card speak of."""
    monkeypatch.chdir(tmp_path)
    done = giraffe("merge", run, "--onto", tmp_path / "base", *out)
    assert done.code == 2
    assert "error: --onto needs --out, another folder than the run's model" in done.stderr
    assert not (run / "model").exists()


def test_a_refused_sibling_leaves_nothing(giraffe, run, tmp_path):
    other = make_base(tmp_path / "other", num_key_value_heads=4)
    done = giraffe("merge", run, "--onto", other, "--out", tmp_path / "mine")
    assert done.code == 3
    assert f"{other} is no fine-tune of {tmp_path / 'base'}: num_key_value_heads 4" in done.stderr
    assert f"giraffe extend --model {other}" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "other", "run"]
