"""Opening checkpoints: what is derived from configs and headers, and what is refused and why."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import build_tiny_llama
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.loading import load_model, load_tokenizer, torch_dtype
from giraffe_cli.rope.base import Head, make_table, strategies
from giraffe_cli.rope.install import finish_directory

LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A copy of the tiny Llama that a test may damage."""
    return shutil.copytree(tiny_llama, tmp_path / "copy")


def edit(path, **changes):
    """Set keys of a JSON file; None removes one."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def refusal(folder, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        inspect(str(folder), tmp_path / "work")
    return caught.value


# -------------------------------------------------------------- what is derived


def test_tiny_llama(tiny_llama, tmp_path):
    found = inspect(str(tiny_llama), tmp_path).to_json()
    digest = found.pop("digest")
    assert len(digest) == 64
    assert found == {
        "source": str(tiny_llama),
        "path": str(tiny_llama),
        "head_dim": 16,
        "rope_theta": 10000.0,
        "native_length": 128,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 384,
        "tie_word_embeddings": True,
        "dtype": "float32",
        # 384·64 + 2·(64·64·2 + 64·32·2 + 3·64·128 + 2·64) + 64
        "num_parameters": 98624,
        "existing_rope": None,
        "base_table": None,
        "base_attention_factor": 1.0,
        "attention_dropout": 0.0,
    }


def test_head_is_the_rotary_shape_for_a_target(tiny_llama, tmp_path):
    head = inspect(str(tiny_llama), tmp_path).head(1024)
    assert (head.head_dim, head.rope_theta, head.factor) == (16, 1e4, 8.0)


def test_num_parameters_is_transformers_count(tiny_llama, tmp_path):
    model = load_model(tiny_llama, dtype=torch_dtype("float32"))
    assert inspect(str(tiny_llama), tmp_path).num_parameters == model.num_parameters()


FULL = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("told", "kind"), [(FULL, RuntimeError), ("CUDA error: out of memory", RuntimeError),
                       ("size mismatch", InvalidInput)],
)  # fmt: skip
def test_a_memory_that_is_full_is_no_fault_of_the_files(tiny_llama, monkeypatch, told, kind):
    from transformers import LlamaForCausalLM

    def fail(*_, **__):
        raise RuntimeError(told)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", fail)
    with pytest.raises(kind, match=re.escape(told)):
        load_model(tiny_llama, dtype=torch_dtype("float32"))


def test_digest_follows_the_weights_and_nothing_else(folder, tmp_path):
    before = inspect(str(folder), tmp_path).digest
    (folder / "README.md").write_text("a card")
    assert inspect(str(folder), tmp_path).digest == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert inspect(str(folder), tmp_path).digest != before


def test_explicit_head_dim_untied_sharded_bfloat16(tmp_path):
    """An explicit head_dim of 32 beats 64/4; two shards; a head of its own."""
    import torch
    from transformers import LlamaForCausalLM

    folder = build_tiny_llama(tmp_path / "m", head_dim=32, tie_word_embeddings=False)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="150kB")
    found = inspect(str(folder), tmp_path)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert (found.head_dim, found.dtype, found.tie_word_embeddings) == (32, "bfloat16", False)
    assert found.num_parameters == model.num_parameters()


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
        ({"rope_parameters": None, "rope_theta": 2e5, "rope_scaling": None}, 2e5),
        ({"rope_parameters": None}, 1e4),
    ],
    ids=["v5", "v4", "neither"],
)
def test_theta_in_either_generation(folder, tmp_path, changes, theta):
    edit(folder / "config.json", **changes)
    found = inspect(str(folder), tmp_path)
    assert (found.rope_theta, found.existing_rope) == (theta, None)


@pytest.mark.parametrize(
    ("changes", "native", "reach"),
    [
        ({"rope_parameters": {**LLAMA_3_1, "rope_theta": 5e5}}, 128, 1024),
        ({"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": LLAMA_3_1}, 128, 1024),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4}}, 1024, 4096),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1024, 2048),
    ],
    ids=["llama3 v5", "llama3 v4", "linear", "dynamic"],
)
def test_existing_scaling_is_recorded(folder, tmp_path, changes, native, reach):
    edit(folder / "config.json", max_position_embeddings=1024, **changes)
    found = inspect(str(folder), tmp_path)
    assert found.native_length == native
    assert found.existing_rope["target_length"] == reach
    assert found.reach == reach


def test_inspecting_a_directory_imports_no_torch(tiny_llama, tmp_path):
    code = (
        "import sys; from pathlib import Path; from giraffe_cli.checkpoint import inspect; "
        f"inspect({str(tiny_llama)!r}, Path({str(tmp_path)!r})); "
        "assert not {'torch', 'transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tokenizer_that_stores_a_cut_cuts_nothing(folder):
    """`generate` read 20 tokens of a prompt of 92 without a word."""
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["truncation"] = {
        **{"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    }
    stored["padding"] = {
        **{"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
    }
    path.write_text(json.dumps(stored))
    found = load_tokenizer(folder).backend_tokenizer
    assert len(found.encode("a long text of many words " * 9).ids) > 64
    assert len(found.encode("a").ids) < 5


@pytest.mark.parametrize("value", ["a tenth", True, -0.1, 1.0])
def test_dropout_that_is_none_is_told(folder, tmp_path, value):
    edit(folder / "config.json", attention_dropout=value)
    with pytest.raises(InvalidInput, match="attention_dropout is"):
        inspect(str(folder), tmp_path)


def test_load_tokenizer(tiny_llama):
    assert load_tokenizer(tiny_llama)("a giraffe").input_ids[0] == 0


# -------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "source", ["./nowhere", "/no/such/folder", "a/b/c", "missing.gguf", "two words"]
)
def test_nothing_there(source, tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        inspect(source, tmp_path)


def test_hub_id_without_network(tmp_path):
    with pytest.raises(InvalidInput, match="no directory someone/no-such-model") as caught:
        inspect("someone/no-such-model", tmp_path)
    assert "hf download someone/no-such-model" in caught.value.hint


def test_a_plain_file(tmp_path):
    (tmp_path / "weights.bin").touch()
    assert "is a file" in refusal(tmp_path / "weights.bin", tmp_path).message


def test_missing_config(folder, tmp_path):
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder, tmp_path).message


def test_a_folder_of_something_else_is_named(folder, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copytree(folder, tmp_path / "run" / "model")
    assert refusal(tmp_path / "run", tmp_path).hint == f"name {tmp_path / 'run' / 'model'}"
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "llama.gguf").touch()
    assert refusal(tmp_path / "gguf", tmp_path).hint == f"name {tmp_path / 'gguf' / 'llama.gguf'}"
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"base_model_name_or_path": "me/it"}')
    error = refusal(tmp_path / "lora", tmp_path)
    assert "holds a PEFT adapter for me/it, no model" in error.message
    assert "merge_and_unload" in error.hint


def test_a_model_with_code_of_its_own_is_refused_before_it_is_trained(folder, tmp_path):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_llama_yarn.Llama"})
    error = refusal(folder, tmp_path)
    assert "has auto_map" in error.message
    assert "remove auto_map from a copy" in error.hint


def test_config_that_is_no_json(folder, tmp_path):
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal(folder, tmp_path).message
    (folder / "config.json").write_text("[]")
    assert "no JSON object" in refusal(folder, tmp_path).message


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": None},
        {"model_type": "mistral"},
    ],
)
def test_other_architectures(folder, tmp_path, changes):
    edit(folder / "config.json", **changes)
    assert "needs LlamaForCausalLM of type `llama`" in refusal(folder, tmp_path).message


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rope_scaling": "linear"}, "RoPE fields that are no mapping: 'linear'"),
        ({"rope_parameters": {"rope_theta": "10k"}}, "rope_theta '10k', needs a number > 1"),
        ({"rope_parameters": {"rope_theta": None}}, "rope_theta None, needs a number > 1"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta 0, needs a number > 1"),
        ({"head_dim": 15}, "head_dim is 15, needs an even integer of at least 4"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, a Llama turns every pair"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ({"max_position_embeddings": 128.0}, "max_position_embeddings is 128.0, needs a positive"),
    ],
)
def test_odd_rope_fields(folder, tmp_path, changes, text):
    edit(folder / "config.json", **changes)
    assert text in refusal(folder, tmp_path).message


def test_quantised_weights(folder, tmp_path):
    edit(folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert "quantised" in refusal(folder, tmp_path).message


def test_every_odd_size_is_listed(folder, tmp_path):
    edit(folder / "config.json", hidden_size="64", num_hidden_layers=0, vocab_size=True)
    message = refusal(folder, tmp_path).message
    assert "3 problems" in message
    assert "hidden_size is '64', needs a positive integer" in message


def test_truncated_weights(folder, tmp_path):
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    with open(weights, "r+b") as handle:
        handle.truncate(size - 100)
    assert (
        f"has {size - 100} bytes, its header describes {size}" in refusal(folder, tmp_path).message
    )


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\x02\0\0\0\0\0\0\0[]"])
def test_weights_that_are_no_safetensors(folder, tmp_path, content):
    (folder / "model.safetensors").write_bytes(content)
    message = refusal(folder, tmp_path).message
    assert "safetensors" in message
    assert ("git lfs pull" in message) is content.startswith(b"version")


def test_missing_shard_and_damaged_shard_are_both_named(folder, tmp_path):
    names = {"model.norm.weight": "one.safetensors", "lm_head.weight": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "two.safetensors").write_bytes(b"not yet")
    (folder / "model.safetensors").unlink()
    message = refusal(folder, tmp_path).message
    assert "one.safetensors is missing" in message
    assert "two.safetensors is no safetensors file (7 bytes)" in message


def test_a_single_file_beside_the_shards_of_another_model(folder, tmp_path):
    """transformers reads the single file, giraffe read the shards: two models in one folder."""
    (folder / "model-1.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    names = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(names))
    assert "has two sets of weights: model.safetensors, and" in refusal(folder, tmp_path).message


def test_an_adapter_beside_a_model(folder, tmp_path):
    """transformers puts it on top; of a merge that was saved into its adapter's folder, twice."""
    (folder / "adapter_config.json").write_text("{}")
    assert "holds a model and, by its adapter_config.json" in refusal(folder, tmp_path).message


def test_tensors_that_the_index_names_and_no_shard_has(folder, tmp_path):
    """An unfinished conversion: the file is whole, and what the index promises is not in it."""
    names = {f"lost.{n}": "model.safetensors" for n in range(6)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    message = refusal(folder, tmp_path).message
    assert "no shard has lost.0" in message
    assert "no shard has lost.4" in message
    assert "lost.5" not in message


def test_shards_without_their_index(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    found = refusal(folder, tmp_path)
    assert "has 1 shard, and no model.safetensors.index.json that says" in found.message
    assert found.hint.startswith("download model.safetensors.index.json")


def test_no_weights_and_pickled_weights(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "has no model.safetensors" in refusal(folder, tmp_path).message
    (folder / "pytorch_model.bin").touch()
    found = refusal(folder, tmp_path)
    assert "only pickled weights (pytorch_model.bin)" in found.message
    assert "--allow-pickle" not in found.hint  # where a command has no such option


def test_weights_of_another_shape(folder, tmp_path):
    """A tensor that is missing would be initialised at random by transformers."""
    edit(folder / "config.json", num_hidden_layers=3, num_key_value_heads=4)
    message = refusal(folder, tmp_path).message
    assert "k_proj.weight is [32, 64], config.json says [64, 64]" in message
    assert "and 8 more" in message


def test_tensors_beside_those_of_the_config_are_told_when_it_is_opened(folder, tmp_path):
    """transformers would leave out a layer, or draw a bias at random, and say so in passing."""
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors, settings = load_file(path), json.loads(config.read_text())
    kept = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file({**tensors, **kept}, path, {"format": "pt"})
    inspect(str(folder), tmp_path)  # nobody reads it
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    save_file({**tensors, **bias}, path, {"format": "pt"})
    with pytest.raises(InvalidInput, match=r"layers\.0\.self_attn\.q_proj\.bias has no place"):
        inspect(str(folder), tmp_path)
    config.write_text(json.dumps({**settings, "attention_bias": True}))
    with pytest.raises(InvalidInput, match=r"layers\.0\.self_attn\.k_proj\.bias is missing"):
        inspect(str(folder), tmp_path)
    save_file(tensors, path, {"format": "pt"})
    config.write_text(json.dumps({**settings, "num_hidden_layers": 1}))
    with pytest.raises(InvalidInput, match=r"layers\.1\.input_layernorm\.weight has no place"):
        inspect(str(folder), tmp_path)


def test_missing_and_foreign_tokenizer(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(folder, tmp_path).message
    tokenizer = {"model": {"vocab": {"a": 0, "b": 400}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refusal(folder, tmp_path).message
    assert "foreign: its ids reach 400, the embedding has 384 rows" in message


def test_an_added_token_without_a_row_is_named_and_the_hint_gives_it_one(folder, tmp_path):
    """As Llama-2-13b was once published: `<pad>` is id 32000 of an embedding of 32000 rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    found = refusal(folder, tmp_path)
    assert "has 384 rows and none for what was added to its tokenizer: <pad>" in found.message
    command = shlex.split(found.hint.removeprefix("give it rows, in a copy: "))
    subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
    mended = inspect(f"{folder}-385", tmp_path)
    assert (
        load_model(mended.path, dtype=torch_dtype("float32")).get_input_embeddings().weight.shape[0]
        == 385
    )


# -------------------------------------------------------------- links


def test_a_link_to_a_file_of_the_users_is_refused(folder, tmp_path):
    (tmp_path / "id_rsa").write_text("private")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "id_rsa")
    found = refusal(folder, tmp_path)
    assert "chat_template.jinja is a link to" in found.message
    assert found.message.endswith("id_rsa, outside of the checkpoint")
    assert found.hint == f"if that is meant, make a copy that follows it: cp -rL {folder} COPY"


def test_the_hubs_cache_weights_elsewhere_and_links_within_are_read(folder, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1f0c", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    digest = inspect(str(folder), tmp_path).digest
    shutil.copytree(folder, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert inspect(str(snapshot), tmp_path).digest == digest
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    (folder / "LICENSE").symlink_to("config.json")
    assert inspect(str(folder), tmp_path).digest == digest


def plant(folder, name, target, **knobs):
    table = make_table(name, knobs, Head(16, 10000.0, 128, target))
    (folder / "rope.json").write_text(json.dumps(table.to_json()))
    return table


@pytest.mark.parametrize("name", ["yarn", "ntk", "linear"])
def test_a_rope_json_that_the_config_does_not_bear_out_is_named(folder, tmp_path, name):
    """It once made a base of 128 tokens one that "already reaches 512"."""
    table = plant(folder, name, 512)
    found = refusal(folder, tmp_path)
    assert "rope.json and config.json beside it say different tables" in found.message
    assert f"giraffe verify {folder}" in found.hint
    edit(folder / "config.json", rope_scaling=None, rope_parameters=table.rope_parameters)
    edit(folder / "config.json", rope_theta=table.rope_parameters["rope_theta"])
    assert inspect(str(folder), tmp_path / "work").existing_rope["target_length"] == 512


def test_so_is_one_of_the_same_type_and_another_factor(folder, tmp_path):
    twice = make_table("yarn", {}, Head(16, 10000.0, 128, 256))
    edit(folder / "config.json", rope_parameters=twice.rope_parameters)
    plant(folder, "yarn", 512)
    assert "say different tables" in refusal(folder, tmp_path).message


@pytest.mark.parametrize("name", strategies())
def test_what_giraffe_writes_of_any_strategy_agrees_with_itself(folder, tmp_path, name):
    head = Head(16, 10000.0, 128, 512)
    table = make_table(name, strategies()[name].example(head), head)
    finish_directory(folder, table)
    found = inspect(str(folder), tmp_path / "work").existing_rope
    assert found["target_length"] == 512
