"""`--to gguf`: every value of the file against an independent reference, and every refusal."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import build_tiny_llama
from gguf import GGML_QUANT_VERSION, GGUFReader, GGUFType, Keys, LlamaFileType, quants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import TARGET, make_base, merge, table_for

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.export.base import ExportOptions, make_target, targets
from giraffe_cli.export.gguf_tensors import Planned, encode, gguf_name, interleave_rows
from giraffe_cli.export.source import open_source
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import strategies
from giraffe_cli.rundir import read_json, write_sealed

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 16


def export(source: Path, out: Path, dtype: str | None = None) -> dict:
    options = ExportOptions(out=out, dtype=dtype)
    return make_target("gguf").export(str(source), options, SilentReporter()).facts


def fields(path: Path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Dequantised float32, in the shapes of the checkpoint."""
    return {
        t.name: np.array(quants.dequantize(t.data, t.tensor_type)) for t in GGUFReader(path).tensors
    }


@pytest.fixture(scope="module")
def scaled(tmp_path_factory) -> SimpleNamespace:
    """A bfloat16 base taken to 1024 tokens with YaRN, and its GGUF."""
    folder = tmp_path_factory.mktemp("scaled")
    base = make_base(folder / "base", torch.bfloat16)
    model = merge(base, None, folder / "model")
    out = folder / "model.gguf"
    return SimpleNamespace(model=model, out=out, table=table_for(base), facts=export(model, out))


# ── the table ────────────────────────────────────────────────────────────────────────────────


def test_the_table_is_divisors_beside_the_plain_theta(scaled):
    stored = fields(scaled.out)
    assert stored["llama.rope.freq_base"] == 10000.0
    assert stored["llama.context_length"] == TARGET
    assert stored["llama.rope.dimension_count"] == HEAD_DIM
    factor = stored["llama.rope.scaling.attn_factor"]
    assert factor == pytest.approx(0.1 * math.log(TARGET / 128) + 1, rel=1e-7)
    divisors = tensors(scaled.out)["rope_freqs.weight"]
    assert divisors.dtype == np.float32
    assert divisors[0] == 1  # the fastest pair is as it was
    assert divisors[-1] == pytest.approx(8, rel=1e-7)  # the slowest is divided by 1024/128
    theta = 10000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    np.testing.assert_allclose(theta / divisors, scaled.table.inv_freq, rtol=2e-7)


def test_the_metadata_is_what_llamacpp_reads_by_its_own_names(tmp_path, tiny_llama):
    export(tiny_llama, tmp_path / "tiny.gguf", "f16")
    stored = fields(tmp_path / "tiny.gguf")
    tokenizer = {name: stored.pop(name) for name in [*stored] if name.startswith("tokenizer.")}
    llama = {Keys.LLM.VOCAB_SIZE: 384, Keys.LLM.CONTEXT_LENGTH: 128, Keys.LLM.BLOCK_COUNT: 2}
    llama |= {Keys.LLM.EMBEDDING_LENGTH: 64, Keys.LLM.FEED_FORWARD_LENGTH: 128}
    llama |= {Keys.Attention.HEAD_COUNT: HEADS, Keys.Attention.HEAD_COUNT_KV: KV_HEADS}
    llama |= {Keys.Attention.KEY_LENGTH: HEAD_DIM, Keys.Attention.VALUE_LENGTH: HEAD_DIM}
    llama |= {Keys.Rope.DIMENSION_COUNT: HEAD_DIM, Keys.Rope.FREQ_BASE: 10000.0}
    llama |= {Keys.Attention.LAYERNORM_RMS_EPS: pytest.approx(1e-6, rel=1e-6)}
    assert {name: value for name, value in stored.items() if not name.startswith("GGUF.")} == {
        Keys.General.ARCHITECTURE: "llama",
        Keys.General.TYPE: GGUFType.MODEL,
        Keys.General.NAME: tiny_llama.name,
        Keys.General.FILE_TYPE: LlamaFileType.MOSTLY_F16,
        Keys.General.QUANTIZATION_VERSION: GGML_QUANT_VERSION,
        **{name.format(arch="llama"): value for name, value in llama.items()},
    }
    texts = read_json(tiny_llama / "tokenizer.json")["model"]
    assert tokenizer == {
        Keys.Tokenizer.MODEL: "gpt2",
        Keys.Tokenizer.PRE: "gpt-2",
        Keys.Tokenizer.LIST: sorted(texts["vocab"], key=texts["vocab"].get),
        Keys.Tokenizer.TOKEN_TYPE: [3, 3, *[1] * 382],
        Keys.Tokenizer.MERGES: [" ".join(pair) for pair in texts["merges"]],
        Keys.Tokenizer.BOS_ID: 0,
        Keys.Tokenizer.EOS_ID: 1,
        Keys.Tokenizer.ADD_BOS: True,
        Keys.Tokenizer.ADD_EOS: False,
    }


def test_nothing_makes_the_runtime_scale_by_itself(scaled):
    """With a scaling type, llama.cpp computes an attention factor or asks for other tensors."""
    named = [name for name in fields(scaled.out) if "rope.scaling" in name]
    assert named == ["llama.rope.scaling.attn_factor"]


@pytest.mark.parametrize("name", sorted(strategies()))
def test_every_strategy_reads_back(tmp_path, tiny_llama, name):
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.merge import merge_stage
    from giraffe_cli.rope.base import make_table

    checkpoint = inspect(str(tiny_llama), tiny_llama)
    head = checkpoint.head(TARGET)
    table = make_table(name, strategies()[name].example(head), head)
    model = merge_stage(checkpoint, None, table, tmp_path / "model", SilentReporter())
    facts = export(model, tmp_path / "model.gguf")
    assert all(check["ok"] for check in facts["checks"].values())
    assert facts["context_length"] == TARGET
    assert facts["attention_factor"] == pytest.approx(table.attention_factor, rel=1e-9)
    stored = fields(tmp_path / "model.gguf")
    found = stored["llama.rope.freq_base"] ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    if facts["rope_freqs"]:
        found = found / tensors(tmp_path / "model.gguf")["rope_freqs.weight"]
    np.testing.assert_allclose(found, table.inv_freq, rtol=2e-7)


def test_an_unscaled_model_needs_no_tensor(tmp_path, tiny_llama):
    facts = export(tiny_llama, tmp_path / "plain.gguf")
    assert (facts["rope_freqs"], facts["attention_factor"], facts["context_length"]) == (
        False,
        1.0,
        128,
    )
    assert "rope_freqs.weight" not in tensors(tmp_path / "plain.gguf")
    assert "llama.rope.scaling.attn_factor" not in fields(tmp_path / "plain.gguf")


def test_a_foreign_llama3_config_is_read_as_what_it_claims(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    model = build_tiny_llama(tmp_path / "m", rope_parameters=rope, max_position_embeddings=1024)
    facts = export(model, tmp_path / "m.gguf")
    assert (facts["context_length"], facts["rope_freqs"]) == (1024, True)
    divisors = tensors(tmp_path / "m.gguf")["rope_freqs.weight"]
    assert (divisors[0], divisors[-1]) == (1, 8)
    assert fields(tmp_path / "m.gguf")["llama.rope.freq_base"] == 500000.0


# ── the weights ──────────────────────────────────────────────────────────────────────────────


def test_rows_of_a_head_interleave():
    """One head of 4: rows (0, 1 | 2, 3) turn as (0, 2), (1, 3) and become neighbours."""
    rows = torch.arange(4.0)[:, None]
    assert interleave_rows(rows, 4)[:, 0].tolist() == [0, 2, 1, 3]


@settings(max_examples=25, deadline=None)
@given(heads=st.integers(1, 5), half=st.integers(1, 6), position=st.integers(0, 5000))
def test_ggmls_rotation_of_interleaved_rows_is_hugging_faces(heads, half, position):
    """Rotate (2i, 2i+1) after interleaving, or (i, i + d/2) before: the same numbers."""
    generator = np.random.default_rng(heads * 100 + half)
    query = generator.normal(size=(heads * 2 * half, 1))
    angle = position * 10000.0 ** -(np.arange(half) / half)
    cos, sin = np.cos(angle), np.sin(angle)
    split = query.reshape(heads, 2, half)
    first, second = split[:, 0], split[:, 1]
    expected = np.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    ours = interleave_rows(torch.from_numpy(query), 2 * half).numpy().reshape(heads, half, 2)
    even, odd = ours[..., 0], ours[..., 1]
    found = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    np.testing.assert_array_equal(found, expected)


def reference(model: Path) -> dict[str, torch.Tensor]:
    """Source weights under llama.cpp's names, permuted row by row in plain Python."""
    found = {}
    for name, weight in load_file(model / "model.safetensors").items():
        rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        if rotated:
            rows = []
            for head in range(weight.shape[0] // HEAD_DIM):
                for i in range(HEAD_DIM // 2):
                    start = head * HEAD_DIM + i
                    rows += [weight[start], weight[start + HEAD_DIM // 2]]
            weight = torch.stack(rows)
        found[str(gguf_name(name))] = weight
    return found


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_matrices_are_the_source_rounded_once_and_norms_float32(tmp_path, scaled, dtype):
    export(scaled.model, tmp_path / "x.gguf", dtype)
    kind = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    found = tensors(tmp_path / "x.gguf")
    del found["rope_freqs.weight"]
    expected = reference(scaled.model)
    assert set(found) == set(expected)
    for name, weight in expected.items():
        rounded = weight.to(kind if weight.dim() > 1 else torch.float32).float().numpy()
        np.testing.assert_array_equal(found[name], rounded, err_msg=name)
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "x.gguf").tensors}
    assert types["blk.1.attn_q.weight"] == dtype.upper()
    assert types["output_norm.weight"] == types["blk.0.ffn_norm.weight"] == "F32"


def test_q8_0_is_within_half_a_step(tmp_path, scaled):
    export(scaled.model, tmp_path / "x.gguf", "q8_0")
    found = tensors(tmp_path / "x.gguf")
    for name, weight in reference(scaled.model).items():
        source = weight.float().numpy()
        blocks = source.reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        # 0.5 step of rounding, and 127 steps of a float16 scale: 127 / 2048 = 0.062.
        limit = 0.57 * step if weight.dim() > 1 else 0
        assert np.all(np.abs(found[name].reshape(-1, 32) - blocks) <= limit), name


def test_rows_that_no_block_divides_are_f16_instead(tmp_path):
    model = build_tiny_llama(tmp_path / "m", intermediate_size=120)
    export(model, tmp_path / "x.gguf", "q8_0")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "x.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


def test_the_file_names_what_it_is_made_of(tmp_path, scaled):
    stored = fields(scaled.out)
    assert stored["general.architecture"] == "llama"
    assert stored["general.file_type"] == 32  # mostly bf16, the checkpoint's own
    assert stored["llama.block_count"] == 2
    assert stored["llama.embedding_length"] == 64
    assert stored["llama.feed_forward_length"] == 128
    assert stored["llama.attention.head_count"] == HEADS
    assert stored["llama.attention.head_count_kv"] == KV_HEADS
    assert stored["llama.attention.key_length"] == HEAD_DIM
    assert stored["llama.vocab_size"] == 384
    assert stored["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_a_head_dim_of_its_own(tmp_path):
    """head_dim 32 where hidden_size / heads is 16."""
    model = build_tiny_llama(tmp_path / "m", head_dim=32)
    export(model, tmp_path / "m.gguf")
    assert fields(tmp_path / "m.gguf")["llama.attention.key_length"] == 32
    assert tensors(tmp_path / "m.gguf")["blk.0.attn_q.weight"].shape == (128, 64)


def test_tied_and_untied_heads(tmp_path, scaled):
    assert "output.weight" not in tensors(scaled.out)
    untied = build_tiny_llama(tmp_path / "m", tie_word_embeddings=False)
    export(untied, tmp_path / "m.gguf")
    head = load_file(untied / "model.safetensors")["lm_head.weight"].numpy()
    np.testing.assert_array_equal(tensors(tmp_path / "m.gguf")["output.weight"], head)


def test_shards_are_read_in_any_number(tmp_path, tiny_llama):
    sharded = make_base(tmp_path / "sharded", shard_size="60kB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    export(sharded, tmp_path / "sharded.gguf")
    export(tiny_llama, tmp_path / "one.gguf")
    one, many = tensors(tmp_path / "one.gguf"), tensors(tmp_path / "sharded.gguf")
    assert set(one) == set(many)
    for name, value in one.items():
        np.testing.assert_array_equal(many[name], value)


def test_transformers_reads_the_file_back_with_equal_logits(tmp_path, tiny_llama):
    """An independent reader: it undoes the permutation and restores θ, for an unscaled model."""
    from transformers import AutoModelForCausalLM, GgufConfig

    facts = export(tiny_llama, tmp_path / "x.gguf", "f32")
    ids = torch.arange(64)[None]
    dequantised = GgufConfig(gguf_file="x.gguf", dequantize=True)
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="x.gguf", dtype=torch.float32, quantization_config=dequantised
    )
    source = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, source(ids).logits, atol=1e-6, rtol=1e-5)
    assert facts["rope_freqs"] is False


def test_a_value_too_large_for_f16_is_refused():
    weight = torch.tensor([[1e6, 0.0]], dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match="has values that f16 cannot hold"):
        encode(weight, Planned("x", "f16", (1, 2), 4))


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_the_checkpoints_fault(dtype, wrong):
    weight = torch.ones(2, 32)
    weight[1, 3] = wrong
    with pytest.raises(InvalidInput, match="x of the checkpoint holds NaN or infinities"):
        encode(weight, Planned("x", dtype, (2, 32), 256))


def test_a_head_of_its_own_beside_tied_embeddings_is_refused(giraffe, tmp_path, tiny_llama):
    """transformers 5 computes with it, and a GGUF of a tied model has none."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "m"))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    done = giraffe("export", folder, "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert done.code == 3
    assert "stores a lm_head.weight of its own" in done.stderr
    assert not (tmp_path / "m.gguf").exists()


# ── failing ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", ["f16", "q8_0"])
def test_a_wrong_permutation_is_caught_and_leaves_no_file(tmp_path, scaled, monkeypatch, dtype):
    import giraffe_cli.export.gguf_tensors as writer

    monkeypatch.setattr(writer, "interleave_rows", lambda weight, head_dim: weight)
    with pytest.raises(GiraffeError, match=r"differ: blk.0.attn_k.weight, blk.0.attn_q") as caught:
        export(scaled.model, tmp_path / "x.gguf", dtype)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_table_is_caught(tmp_path, scaled, monkeypatch):
    import giraffe_cli.export.targets.gguf as target

    real = target.write_gguf

    def rounded(path, fields, plan, weights, divisors, reporter):
        real(path, fields, plan, weights, divisors.astype(np.float16), reporter)

    monkeypatch.setattr(target, "write_gguf", rounded)
    with pytest.raises(GiraffeError, match=r"rope_freqs: .* off; stock_table"):
        export(scaled.model, tmp_path / "x.gguf")


def test_a_lost_attention_factor_is_caught(tmp_path, scaled, monkeypatch):
    import giraffe_cli.export.targets.gguf as target

    real = target.write_gguf

    def dropped(path, fields, *rest):
        kept = {name: value for name, value in fields.items() if "attn_factor" not in name}
        real(path, kept, *rest)

    monkeypatch.setattr(target, "write_gguf", dropped)
    with pytest.raises(GiraffeError, match=r"attn_factor: 1.0"):
        export(scaled.model, tmp_path / "x.gguf")


def test_the_same_again_is_left_as_it_is(scaled):
    before, content = scaled.out.stat(), scaled.out.read_bytes()
    assert export(scaled.model, scaled.out) == scaled.facts
    after = scaled.out.stat()
    assert (after.st_ino, scaled.out.read_bytes()) == (before.st_ino, content)
    assert after.st_mtime_ns > before.st_mtime_ns  # `doctor` asks for a file as new as the weights


def test_another_file_is_not_replaced(giraffe, tmp_path, scaled):
    (tmp_path / "mine.gguf").write_bytes(b"precious")
    done = giraffe("export", scaled.model, "--to", "gguf", "--out", tmp_path / "mine.gguf")
    assert done.code == 3
    assert "exists and is no readable GGUF file" in done.stderr
    assert (tmp_path / "mine.gguf").read_bytes() == b"precious"
    shutil.copy(scaled.out, tmp_path / "other.gguf")
    done = giraffe(
        "export", scaled.model, "--to", "gguf", "--out", tmp_path / "other.gguf", "--dtype", "f16"
    )
    assert done.code == 3
    assert "exists and holds something else (fields: general.file_type" in done.stderr
    done = giraffe("export", scaled.model, "--to", "gguf", "--out", tmp_path)
    assert done.code == 3
    assert f"{tmp_path} exists and is no file" in done.stderr


def test_a_table_that_switches_is_refused(tmp_path):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 128,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    model = build_tiny_llama(tmp_path / "m", rope_parameters=rope, max_position_embeddings=1024)
    with pytest.raises(InvalidInput, match="table changes with the length"):
        open_source(str(model))


def test_rope_json_and_config_must_agree(tmp_path, scaled):
    model = shutil.copytree(scaled.model, tmp_path / "m")
    value = read_json(model / "rope.json")
    value["inv_freq"][-1] *= 1.01
    write_sealed(model / "rope.json", value)
    (model / "manifest.json").unlink()  # which holds its digest
    with pytest.raises(
        InvalidInput, match="rope.json and config.json beside it say different tables"
    ):
        open_source(str(model))


def test_tensors_without_a_place_are_named(tmp_path):
    """Biases that the config names too: the file would say nothing of them."""
    model = build_tiny_llama(tmp_path / "m", attention_bias=True)
    with pytest.raises(InvalidInput, match=r"8 biases, which giraffe writes into no GGUF: model"):
        export(model, tmp_path / "m.gguf")


def test_damaged_weights_are_named(giraffe, tmp_path, tiny_llama):
    model = shutil.copytree(tiny_llama, tmp_path / "m")
    with open(model / "model.safetensors", "r+b") as handle:
        handle.truncate(2000)
    done = giraffe("export", model, "--to", "gguf")
    assert done.code == 3
    assert "model.safetensors" in done.stderr
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_full_disk_leaves_nothing(tmp_path, tiny_llama, monkeypatch):
    from gguf import GGUFWriter

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GGUFWriter, "write_tensor_data", full)
    with pytest.raises(GiraffeError, match=r"cannot write .*No space left"):
        export(tiny_llama, tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []


def test_every_target_is_found():
    assert set(targets()) >= {"gguf", "adapter"}
    assert all(target.summary and target.takes for target in targets().values())
