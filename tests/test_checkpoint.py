"""Opening checkpoints: what is derived from configs and headers, and what is refused and why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import build_tiny_llama

from giraffe_cli.checkpoint import inspect, load_model, load_tokenizer, torch_dtype
from giraffe_cli.errors import InvalidInput

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
    }


def test_head_is_the_rotary_shape_for_a_target(tiny_llama, tmp_path):
    head = inspect(str(tiny_llama), tmp_path).head(1024)
    assert (head.head_dim, head.rope_theta, head.factor) == (16, 1e4, 8.0)


def test_num_parameters_is_transformers_count(tiny_llama, tmp_path):
    model = load_model(tiny_llama, dtype=torch_dtype("float32"))
    assert inspect(str(tiny_llama), tmp_path).num_parameters == model.num_parameters()


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
        ({"head_dim": 15}, "head_dim is 15, needs an even integer of at least 4"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
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
    assert "safetensors" in refusal(folder, tmp_path).message


def test_missing_shard_and_damaged_shard_are_both_named(folder, tmp_path):
    names = {"model.norm.weight": "one.safetensors", "lm_head.weight": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "two.safetensors").write_bytes(b"not yet")
    message = refusal(folder, tmp_path).message
    assert "one.safetensors is missing" in message
    assert "two.safetensors is no safetensors file (7 bytes)" in message


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


def test_missing_and_foreign_tokenizer(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(folder, tmp_path).message
    tokenizer = {"model": {"vocab": {"a": 0, "b": 400}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refusal(folder, tmp_path).message
    assert "foreign: its ids reach 400, the embedding has 384 rows" in message


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


# -------------------------------------------------------------- GGUF


def write_gguf(folder, path, **metadata):
    """The tiny Llama as llama.cpp's converter writes it: query and key rows interleaved."""
    import gguf
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(384)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_token_types([3, 3] + [1] * 382)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in gguf_tensors(model):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensors(model):
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    for layer in range(2):
        for theirs, ours in names.items():
            value = state[f"model.layers.{layer}.{theirs}.weight"]
            if heads := {"attn_q": 4, "attn_k": 2}.get(ours):
                value = value.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(value.shape)
            yield f"blk.{layer}.{ours}.weight", value


def test_gguf_becomes_the_same_model_and_is_converted_once(tiny_llama, tmp_path):
    import torch

    path = write_gguf(tiny_llama, tmp_path / "tiny.gguf")
    found = inspect(str(path), tmp_path / "work")
    assert found.path == tmp_path / "work" / "base"
    assert (found.native_length, found.dtype, found.num_key_value_heads) == (128, "float32", 2)
    text = "The giraffe eats 12 leaves."
    ids = load_tokenizer(tiny_llama)(text, return_tensors="pt").input_ids
    assert load_tokenizer(found.path)(text).input_ids[-5:] == ids[0, -5:].tolist()
    assert load_tokenizer(found.path).model_max_length == 128
    with torch.no_grad():
        ours, theirs = (
            load_model(folder, dtype=torch.float32)(ids).logits
            for folder in (found.path, tiny_llama)
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    written = (found.path / "model.safetensors").stat().st_mtime_ns
    inspect(str(path), tmp_path / "work")
    assert (found.path / "model.safetensors").stat().st_mtime_ns == written


def test_gguf_that_is_scaled_foreign_or_damaged(tiny_llama, tmp_path):
    scaled = write_gguf(tiny_llama, tmp_path / "scaled.gguf", llama__rope__scaling__type="yarn")
    assert "carries RoPE scaling (yarn)" in refusal(scaled, tmp_path).message
    foreign = write_gguf(tiny_llama, tmp_path / "qwen.gguf", architecture="qwen2")
    assert "holds a `qwen2` model, needs `llama`" in refusal(foreign, tmp_path).message
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"not a gguf at all, although long enough to be looked at")
    assert "is not a readable GGUF file" in refusal(damaged, tmp_path).message
    assert not (tmp_path / "work" / "base").exists()


def test_gguf_whose_tensors_changed_their_name_or_shape(tiny_llama, tmp_path):
    """transformers draws what is missing at random and says so in passing."""
    whole = write_gguf(tiny_llama, tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    message = refusal(path, tmp_path).message
    assert "lacks 1 tensors of its model, such as model.layers.1.self_attn.q_proj" in message
    rows = (384).to_bytes(8, "little")
    name = whole.index(b"token_embd.weight")
    place = whole.index(rows, name)
    path.write_bytes(whole[:place] + (192).to_bytes(8, "little") + whole[place + 8 :])
    assert "changed.gguf cannot be unpacked: " in refusal(path, tmp_path).message


def test_gguf_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = refusal(tmp_path / "tiny.gguf", tmp_path)
    assert "needs the `gguf` package" in found.message
    assert found.hint == "pip install 'giraffe-cli[gguf]'"
