"""A `.gguf` file becomes the model it holds, once, or is refused with a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_checkpoint import refusal

from giraffe_cli.checkpoint import inspect
from giraffe_cli.export.gguf_pretoken import byte_level_pre
from giraffe_cli.gguf_header import GgufHeader
from giraffe_cli.gguf_import import import_gguf, with_steps
from giraffe_cli.gguf_pipelines import NAMES, known_names, steps_of
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.rundir import finish_stage, read_json
from giraffe_cli.tensor_stream import stored_tensors


def write_gguf(folder, path, kind="F32", tensors=(), **metadata):
    """The tiny Llama as llama.cpp's converter writes it: query and key rows interleaved; matrices
    of type `kind`, norms in float32; `tensors` are further pairs of name and values."""
    import gguf
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, metadata.pop("architecture", "llama"))
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(metadata.pop("heads", 4))
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(384)
    writer.add_tokenizer_model(metadata.pop("tokenizer__ggml__model", "gpt2"))
    writer.add_tokenizer_pre(metadata.pop("tokenizer__ggml__pre", "gpt-2"))
    writer.add_token_list(sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_token_types([3, 3] + [1] * 382)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[bool] = writer.add_bool
        add[type(value)](key.replace("__", "."), value)
    for name, tensor in [*gguf_tensors(model), *tensors]:
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
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
    of_another = tmp_path / "work" / "base" / "chat_template.jinja"  # of a call that was killed
    of_another.parent.mkdir(parents=True)
    of_another.write_text("{{ messages }}")
    found = inspect(str(path), tmp_path / "work")
    assert found.path == tmp_path / "work" / "base"
    assert not of_another.exists()
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


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "BF16")],
)
def test_every_weight_is_unpacked_to_the_dtype_of_the_matrices(tiny_llama, tmp_path, kind, dtype):
    path = write_gguf(tiny_llama, tmp_path / "tiny.gguf", kind)
    out = import_gguf(path, tmp_path / "out")
    assert {tensor.dtype for tensor in stored_tensors(out).values()} == {dtype}


def test_gguf_that_does_not_fit_in_memory_is_not_called_damaged(tiny_llama, tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("giraffe_cli.gguf_import._unpacked", full)
    with pytest.raises(MemoryError):
        import_gguf(write_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "out")


def test_gguf_that_is_scaled_foreign_or_damaged(tiny_llama, tmp_path):
    scaled = write_gguf(tiny_llama, tmp_path / "scaled.gguf", llama__rope__scaling__type="yarn")
    assert "carries RoPE scaling (yarn)" in refusal(scaled, tmp_path).message
    factors = [("rope_freqs.weight", np.full(8, 4, np.float32))]
    divided = write_gguf(tiny_llama, tmp_path / "divided.gguf", tensors=factors)
    assert "carries RoPE scaling (factor tensors)" in refusal(divided, tmp_path).message
    foreign = write_gguf(tiny_llama, tmp_path / "qwen.gguf", architecture="qwen2")
    assert "holds a `qwen2` model, needs `llama`" in refusal(foreign, tmp_path).message
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"not a gguf at all, although long enough to be looked at")
    assert "is not a readable GGUF file" in refusal(damaged, tmp_path).message
    assert not (tmp_path / "work" / "base").exists()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope.scale_linear", 4.0, "carries RoPE scaling (scale_linear)"),
        ("rope.scaling.factor", 4.0, "carries RoPE scaling (scaling.factor)"),
        ("rope.scaling.attn_factor", 1.3, "carries RoPE scaling (scaling.attn_factor)"),
        ("attention.scale", 0.05, "is no plain Llama: it has attention.scale 0.05"),
        ("attention.sliding_window", 64, "it has attention.sliding_window 64"),
        ("attention.key_length", 32, "it has rope.dimension_count 16 of 32"),
        ("expert_count", 8, "it has expert_count 8"),
    ],
)
def test_what_transformers_would_leave_out_is_refused(tiny_llama, tmp_path, key, value, words):
    """It was read as a plain, unscaled Llama."""
    metadata = {f"llama__{key.replace('.', '__')}": value}
    path = write_gguf(tiny_llama, tmp_path / "other.gguf", **metadata)
    assert words in refusal(path, tmp_path).message


def test_keys_that_change_nothing_are_no_reason(tiny_llama, tmp_path):
    same = {"llama__rope__scaling__factor": 1.0, "llama__attention__scale": 0.25}
    path = write_gguf(tiny_llama, tmp_path / "plain.gguf", **same)
    found = inspect(str(path), tmp_path / "work")
    assert (found.existing_rope, found.native_length) == (None, 128)


def test_biases_and_heads_by_layer_are_refused(tiny_llama, tmp_path):
    """The biases were left out, and a list of heads was a TypeError."""
    bias = [("blk.0.attn_q.bias", np.ones(64, np.float32))]
    path = write_gguf(tiny_llama, tmp_path / "bias.gguf", tensors=bias)
    assert "it has the tensor blk.0.attn_q.bias" in refusal(path, tmp_path).message
    path = write_gguf(tiny_llama, tmp_path / "heads.gguf", heads=[4, 4])
    assert "has other heads in each layer" in refusal(path, tmp_path).message


@pytest.mark.parametrize("name", known_names())
def test_the_steps_of_each_name_are_those_that_an_export_gives_that_name(name):
    steps, ignores_merges = steps_of(name)
    value = {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"ignore_merges": ignores_merges},
    }
    assert byte_level_pre(value) == next(names[0] for names in NAMES.values() if name in names)


@pytest.mark.parametrize(
    ("pre", "text", "tokens"),
    [
        ("gpt-2", "a  12", ["a", "Ġ", "Ġ12"]),
        ("smollm", "a  12", ["a", "ĠĠ", "1", "2"]),
        ("qwen2", "a  12", ["a", "Ġ", "Ġ", "1", "2"]),
        ("llama-bpe", "a  1234", ["a", "Ġ", "Ġ", "123", "4"]),
        ("tekken", "a HTMLText 12", ["a", "ĠHTMLText", "Ġ", "1", "2"]),
    ],
)
def test_text_is_split_as_llamacpp_splits_it(tiny_llama, tmp_path, pre, text, tokens):
    """transformers took GPT-2's steps for the names that it does not know, SmolLM2's among them:
    9 of 58 books had other tokens."""
    path = write_gguf(tiny_llama, tmp_path / "tiny.gguf", tokenizer__ggml__pre=pre)
    backend = load_tokenizer(import_gguf(path, tmp_path / "out")).backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == tokens
    assert json.loads(backend.to_str())["model"]["ignore_merges"] is (
        pre in ("llama-bpe", "tekken")
    )


@pytest.mark.parametrize(
    ("pre", "said", "begins"),
    [("llama-bpe", {}, True), ("llama-bpe", {"add_bos_token": False}, False), ("gpt-2", {}, False)],
)
def test_a_text_begins_with_bos_where_llamacpp_begins_it_so(
    tiny_llama, tmp_path, pre, said, begins
):
    """Llama 3's files need not say it; transformers takes that as no."""
    metadata = {f"tokenizer__ggml__{key}": value for key, value in said.items()}
    path = write_gguf(tiny_llama, tmp_path / "b.gguf", tokenizer__ggml__pre=pre, **metadata)
    tokenizer = load_tokenizer(import_gguf(path, tmp_path / "out"))
    assert (tokenizer("sky").input_ids[0] == tokenizer.bos_token_id) is begins


def test_a_folder_of_an_earlier_version_stays_as_runs_were_trained_on_it(tiny_llama, tmp_path):
    """Converted again it had another tokenizer, and the run refused its own base."""
    path = write_gguf(tiny_llama, tmp_path / "tiny.gguf", tokenizer__ggml__pre="smollm")
    out = import_gguf(path, tmp_path / "out")
    inputs = read_json(out / "manifest.json")["inputs"]
    edited = (out / "tokenizer.json").read_text().replace("Digits", "Punctuation")
    (out / "tokenizer.json").write_text(edited)
    finish_stage(out, {key: inputs[key] for key in ("gguf_sha256", "dtype")})
    import_gguf(path, out)
    assert (out / "tokenizer.json").read_text() == edited
    (out / "tokenizer.json").unlink()
    import_gguf(path, out)
    assert "Digits" in (out / "tokenizer.json").read_text()


@pytest.mark.parametrize("pre", ["poro-chat", "default"])
def test_steps_that_are_not_known_are_refused(tiny_llama, tmp_path, pre):
    """They became GPT-2's."""
    path = write_gguf(tiny_llama, tmp_path / "tiny.gguf", tokenizer__ggml__pre=pre)
    assert f"with the pre-tokenizer `{pre}`, which is not known" in refusal(path, tmp_path).message


@pytest.mark.parametrize(
    ("prefix", "tokens", "shown"), [(True, "▁▁▁x▁y", "  x y"), (False, "▁▁x▁y", "  x y")]
)
def test_a_sentencepiece_tokenizer_puts_one_space_before_a_text_or_none(prefix, tokens, shown):
    """Of two spaces at a beginning, one was lost."""
    value = {
        "decoder": {"decoders": [{"type": "Replace"}, {"type": "Strip"}]},
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace"},
    }
    value = with_steps(value, GgufHeader("float32", "llama", "", prefix))
    from tokenizers import normalizers

    found = normalizers.Sequence([])
    found.__setstate__(json.dumps(value["normalizer"]).encode())
    assert found.normalize_str(shown) == tokens
    assert value["pre_tokenizer"] is None
    assert len(value["decoder"]["decoders"]) == 1 + prefix


def test_gguf_whose_tensors_changed_their_name_or_shape(tiny_llama, tmp_path):
    """transformers draws what is missing at random and says so in passing."""
    whole = write_gguf(tiny_llama, tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "changed.gguf"
    path.write_bytes(whole.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    assert "it has the tensor blk.1.attn_z.weight" in refusal(path, tmp_path).message
    path.write_bytes(whole.replace(b"blk.1.attn_q.weight", b"blk.9.attn_q.weight"))
    message = refusal(path, tmp_path).message
    assert "lacks 1 tensors of its model, such as model.layers.1.self_attn.q_proj" in message
    rows = (384).to_bytes(8, "little")
    name = whole.index(b"token_embd.weight")
    place = whole.index(rows, name)
    path.write_bytes(whole[:place] + (192).to_bytes(8, "little") + whole[place + 8 :])
    told = refusal(path, tmp_path).message  # of transformers, or of the check of weights after it
    assert "changed.gguf cannot be unpacked: " in told or "is [192, 64], config.json says" in told


def test_gguf_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "tiny.gguf").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = refusal(tmp_path / "tiny.gguf", tmp_path)
    assert "needs the `gguf` package" in found.message
    assert found.hint == "pip install 'giraffe-cli[gguf]'"
