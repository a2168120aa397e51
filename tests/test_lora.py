"""Adapters: every target matches, the seed decides the start, the files load in stock PEFT."""

from __future__ import annotations

import json

import pytest
import torch

from giraffe_cli.config.lora import LoraConfig
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.lora import add_lora, save_adapter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rundir import read_json

TABLE = RopeTable(
    strategy="linear",
    knobs={},
    head_dim=16,
    rope_theta=10000.0,
    original_max_position_embeddings=128,
    target_length=512,
    inv_freq=(0.25,) * 8,
    attention_factor=1.0,
    rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
)


def load(folder, dtype=torch.float32):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype=dtype)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_a_misspelt_target_is_named_with_its_near_miss(tiny_llama):
    with pytest.raises(
        InvalidInput, match="`v_prj` matches no linear layer; did you mean `v_proj`"
    ):
        add_lora(load(tiny_llama), LoraConfig(targets=["q_proj", "v_prj"]), seed=0)


@pytest.mark.parametrize("target", ["embed_tokens", "proj"])
def test_embedding_and_half_names_are_no_targets(tiny_llama, target):
    with pytest.raises(InvalidInput, match=f"`{target}` matches no linear layer"):
        add_lora(load(tiny_llama), LoraConfig(targets=[target]), seed=0)


def test_only_float32_adapters_train_and_the_seed_decides_them(tiny_llama):
    before = torch.random.get_rng_state()
    models = [add_lora(load(tiny_llama, torch.bfloat16), LoraConfig(rank=2), s) for s in (1, 1, 2)]
    first, same, other = (trainable(model) for model in models)
    assert len(first) == 2 * 7 * 2  # layers · targets · (A, B)
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in first.items())
    assert all(torch.equal(p, same[name]) for name, p in first.items())
    assert any(not torch.equal(p, other[name]) for name, p in first.items())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # inside PEFT
def test_the_saved_adapter_is_peft_format_with_rope_inside_and_no_path(tiny_llama, tmp_path):
    from peft import PeftModel

    model = add_lora(load(tiny_llama), LoraConfig(rank=2, alpha=8), seed=3)
    for parameter in trainable(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path, TABLE, source="tiny")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"adapter_model.safetensors", "adapter_config.json", "rope.json"}
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tiny"
    assert settings["target_modules"] == sorted(settings["target_modules"])
    assert str(tiny_llama) not in json.dumps(settings)
    assert RopeTable.from_json(read_json(tmp_path / "rope.json")) == TABLE
    tokens = torch.arange(5, 15)[None]
    reloaded = PeftModel.from_pretrained(load(tiny_llama), tmp_path)
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens).logits, reloaded.eval()(tokens).logits)
