"""Other people's accidents: each is named in words, none passes, none is a traceback.

Every case is a real directory of the tiny Llama (head 16, window 128, θ 10⁴) with one thing wrong.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import ask_here, make_adapter, make_base, merge

from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.malformed import is_length, rope_problems
from giraffe_cli.rope.runtimes import RUNTIMES, portability, runtimes
from giraffe_cli.rundir import read_json, write_json
from giraffe_cli.verify import verify_directory
from giraffe_cli.verify_config import check_rope_fields
from giraffe_cli.verify_tables import rounding_of

Damage = Callable[[Path], None]
NATIVE = {"original_max_position_embeddings": 128}
TINY = {"hidden_size": 64, "num_attention_heads": 4}


def prove(folder: Path, **options: Any) -> dict[str, Any]:
    options.setdefault("probe", ask_here)
    return verify_directory(folder, reporter=SilentReporter(), **options)


def failures(proof: dict[str, Any]) -> dict[str, str]:
    return {name: str(c["found"]) for name, c in proof["checks"].items() if not c["ok"]}


def never_asked(request: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError("the model was loaded although the files made that pointless")


@pytest.fixture
def copy(tiny_llama, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


# ── how to damage a directory ────────────────────────────────────────────────────────────────


def keys(*dropped: str, **values: Any) -> Damage:
    """Drop and set keys of config.json."""

    def damage(folder: Path) -> None:
        config = {**read_json(folder / "config.json"), **values}
        write_json(folder / "config.json", {k: v for k, v in config.items() if k not in dropped})

    return damage


def rope(kind: str, window: int = 1024, **fields: Any) -> Damage:
    """Both spellings say `kind` with `fields`, and the window and tokenizer are raised."""
    scaling = {"rope_type": kind, **fields}

    def damage(folder: Path) -> None:
        keys(
            max_position_embeddings=window,
            rope_theta=1e4,
            rope_scaling=scaling,
            rope_parameters={**scaling, "rope_theta": 1e4},
        )(folder)
        tokenizer(window)(folder)

    return damage


def both(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for step in damages:
            step(folder)

    return damage


def tokenizer(limit: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer_config.json"
        write_json(path, {**read_json(path), "model_max_length": limit})

    return damage


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content) and None


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, metadata={"format": "pt"})

    return damage


def longrope(**changes: Any) -> Damage:
    whole = {
        **NATIVE,
        "factor": 8.0,
        "attention_factor": 1.2,
        "short_factor": [2.0] * 8,
        "long_factor": [2.0] * 8,
        "short_mscale": 1.2,
        "long_mscale": 1.2,
    }
    fields = {k: v for k, v in {**whole, **changes}.items() if v is not None}
    return rope("longrope", **fields)


def third(value: Any) -> list[Any]:
    """Eight divisors, the third of them wrong."""
    return [1.0, 1.0, value, 1.0, 1.0, 1.0, 1.0, 1.0]


def llama3(**changes: Any) -> Damage:
    whole = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **NATIVE}
    return rope("llama3", **{k: v for k, v in {**whole, **changes}.items() if v is not None})


def plain_table(theta: float = 1e4) -> torch.Tensor:
    return 1.0 / theta ** (torch.arange(0, 16, 2, dtype=torch.float64) / 16)


def store_tables(table: torch.Tensor) -> Damage:
    """What transformers before 4.32 saved with every layer."""

    def change(held: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            held[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = table.clone()

    return tensors(change)


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def resize_embeddings(held: dict[str, torch.Tensor]) -> None:
    name = "model.embed_tokens.weight"
    held[name] = torch.cat([held[name], held[name][:1]])


def quantise(held: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    held[name] = held[name].to(torch.int8)


def another_head(held: dict[str, torch.Tensor]) -> None:
    held["lm_head.weight"] = torch.ones_like(held["model.embed_tokens.weight"])


def forget_a_matrix(held: dict[str, torch.Tensor]) -> None:
    held.pop("model.layers.1.self_attn.q_proj.weight")


# ── the accidents ────────────────────────────────────────────────────────────────────────────

UNREADABLE: dict[str, tuple[Damage, str]] = {
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "an empty config.json": (text("config.json", ""), "is empty (0 bytes)"),
    "an empty object": (text("config.json", "{}"), "or an empty one"),
    "half a config.json": (text("config.json", '{"model_type": "lla'), "cannot be read as JSON"),
    "a list as config.json": (text("config.json", "[1, 2]"), "holds no JSON object"),
    "half a tokenizer_config.json": (text("tokenizer_config.json", "{"), "cannot be read as JSON"),
    "half a rope.json": (text("rope.json", '{"strategy": "yarn"}'), "rope.json lacks knobs"),
    "a number as rope.json": (text("rope.json", "3"), "holds no JSON object with a table"),
    "a number as its table": (text("rope.json", '{"inv_freq": 3}'), "no JSON object with a table"),
}

MALFORMED: dict[str, tuple[Damage, str, str]] = {
    "rope_scaling is a list": (
        keys(rope_scaling=[4.0]),
        "rope_fields",
        "rope_scaling is a list ([4.0]), needs a mapping",
    ),
    "rope_scaling is a string": (keys(rope_scaling="linear"), "rope_fields", "is a str ('linear')"),
    "rope_scaling is a number": (keys(rope_scaling=4), "rope_fields", "is a int (4)"),
    "a dict for each layer type": (
        keys(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 5e5}}),
        "rope_fields",
        "rope_parameters is nested by layer type (full_attention)",
    ),
    "type against rope_type": (
        rope("linear", type="dynamic", factor=8.0),
        "rope_fields",
        "type `dynamic` disagrees with rope_type `linear`",
    ),
    "su": (rope("su", factor=8.0), "rope_fields", "`'su'` is none that Llama runtimes know (write"),
    "axial": (rope("axial", factor=8.0), "rope_fields", "`'axial'` is none that Llama runtimes"),
    "a type of one's own": (rope("mine", factor=8.0), "rope_fields", "known: default, linear"),
    "a null theta": (keys(rope_theta=None), "rope_fields", "rope_theta is null"),
    "a null theta inside": (
        keys(rope_parameters={"rope_type": "default", "rope_theta": None}),
        "rope_fields",
        "rope_theta is null",
    ),
    "theta as a string": (keys(rope_theta="500000"), "rope_fields", "rope_theta is '500000'"),
    "no factor": (rope("yarn", **NATIVE), "rope_fields", "yarn without factor"),
    "a factor below one": (
        rope("linear", factor=0.125),
        "rope_fields",
        "factor is 0.125, needs a number of at least 1",
    ),
    "a factor as a string": (rope("yarn", factor="8", **NATIVE), "rope_fields", "factor is '8'"),
    "a factor of true": (rope("linear", factor=True), "rope_fields", "factor is True"),
    "a factor without end": (rope("linear", factor=math.inf), "rope_fields", "factor is inf"),
    "a fractional original length": (
        rope("yarn", factor=8.0, original_max_position_embeddings=128.0),
        "rope_fields",
        "original_max_position_embeddings is 128.0, needs a positive integer",
    ),
    "an original length of true": (
        rope("yarn", factor=8.0, original_max_position_embeddings=True),
        "rope_fields",
        "original_max_position_embeddings is True",
    ),
    "an original length as a string": (
        rope("yarn", factor=8.0, original_max_position_embeddings="128"),
        "rope_fields",
        "original_max_position_embeddings is '128'",
    ),
    "too few factors": (
        longrope(short_factor=[1.0] * 7, long_factor=[1.0] * 7),
        "rope_fields",
        "short_factor has 7 numbers, needs head_dim/2 = 8",
    ),
    "a zero among factors": (
        longrope(long_factor=third(0.0)),
        "rope_fields",
        "long_factor[2] is 0",
    ),
    "a negative factor": (longrope(long_factor=third(-1.0)), "rope_fields", "long_factor[2] is -1"),
    "NaN among factors": (longrope(long_factor=third(math.nan)), "rope_fields", "[2] is nan"),
    "Infinity among factors": (longrope(long_factor=third(math.inf)), "rope_fields", "[2] is inf"),
    "a string among factors": (longrope(long_factor=third("1")), "rope_fields", "[2] is '1'"),
    "factors as one number": (longrope(long_factor=2.0), "rope_fields", "long_factor is 2.0"),
    "low above high": (
        llama3(low_freq_factor=4.0, high_freq_factor=1.0),
        "rope_fields",
        "low_freq_factor 4.0 is not below high_freq_factor 1.0",
    ),
    "no low_freq_factor": (llama3(low_freq_factor=None), "rope_fields", "without low_freq_factor"),
    "mscale as a string": (
        rope("yarn", factor=8.0, mscale="1", mscale_all_dim=1.0, **NATIVE),
        "rope_fields",
        "mscale is '1', needs a number of at least 0",
    ),
    "a native window on top as a string": (
        keys(original_max_position_embeddings="128"),
        "rope_fields",
        "original_max_position_embeddings is '128'",
    ),
    "half of the pairs": (keys(partial_rotary_factor=0.5), "rope_fields", "partial_rotary_factor"),
    "a fractional window": (
        keys(max_position_embeddings=128.0),
        "max_position_embeddings",
        "128.0",
    ),
    "a window as a string": (
        keys(max_position_embeddings="128"),
        "max_position_embeddings",
        "'128'",
    ),
    "a window of true": (keys(max_position_embeddings=True), "max_position_embeddings", "True"),
    "no window": (keys("max_position_embeddings"), "max_position_embeddings", "None"),
    "no number of heads": (
        keys("num_attention_heads"),
        "model_shape",
        "num_attention_heads is None, needs a positive integer",
    ),
    "quantised weights": (
        keys(quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantisation",
        "quantised weights",
    ),
    "integer weights": (tensors(quantise), "tensors", "up_proj.weight is I8"),
    "pickled weights": (pickle_weights, "weight_files", "only pickled weights (pytorch_model.bin)"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "weight_files",
        "has no model.safetensors",
    ),
    "a matrix forgotten": (tensors(forget_a_matrix), "tensors", "1.self_attn.q_proj.weight is mis"),
    "embeddings of 385 rows": (
        tensors(resize_embeddings),
        "tensors",
        "embed_tokens.weight is [385, 64], config.json says [384, 64]",
    ),
    "more layers than tensors": (
        keys(num_hidden_layers=10**12),
        "tensors",
        "20 tensors for 1000000000000 layers",
    ),
    "another architecture": (
        keys(model_type="qwen2", architectures=["Qwen2ForCausalLM"]),
        "architecture",
        "Qwen2ForCausalLM of type qwen2",
    ),
}

MIS_SCALED: dict[str, tuple[Damage, str, str]] = {
    "no rope fields, long window": (
        both(keys("rope_parameters", max_position_embeddings=16384), tokenizer(16384)),
        "scaling",
        "scaling lost: unscaled RoPE with θ 10000 reaches about 4096 tokens, the window is 16384",
    ),
    "Llama 3.1 without llama3": (
        both(
            keys("rope_parameters", max_position_embeddings=131072, rope_theta=5e5),
            tokenizer(131072),
        ),
        "scaling",
        "θ 500000 reaches about 642",
    ),
    "the tokenizer reaches further": (
        tokenizer(1024),
        "scaling",
        "the tokenizer allows 1024 tokens, the config 128",
    ),
    "theta in rope_parameters, which loses": (
        keys(
            rope_scaling={"type": "linear", "factor": 1.0},
            rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 5e5},
        ),
        "rope_theta",
        "no key in force names it, so it is read as 10000; rope_parameters says 500000",
    ),
    "llama3 without theta": (
        both(llama3(), keys("rope_theta", "rope_parameters")),
        "rope_theta",
        "llama3 scaling was made for 500000",
    ),
    "spellings of two scalings": (
        keys(
            rope_theta=1e4,
            rope_scaling={"rope_type": "linear", "factor": 2.0},
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        ),
        "rope_spellings",
        "factor: 2.0 against 4.0",
    ),
    "transformers 5 alone is told": (
        keys(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "rope_spellings",
        "rope_theta: 10000.0 against 500000.0",
    ),
    "yarn without the native window": (
        rope("yarn", factor=8.0),
        "rope_type_fields",
        "yarn without an integer original_max_position_embeddings",
    ),
    "llama3 without the native window": (
        llama3(original_max_position_embeddings=None),
        "rope_type_fields",
        "llama3 without an integer original_max_position_embeddings",
    ),
    "a window that was not raised": (
        rope("yarn", 128, factor=8.0, **NATIVE),
        "rope_lengths",
        "original_max_position_embeddings 128 is not below the window 128",
    ),
    "another factor": (
        rope("yarn", factor=4.0, **NATIVE),
        "rope_lengths",
        "factor 4, but window/original is 8",
    ),
    "another factor, as transformers 5 alone writes it": (
        both(rope("yarn", factor=4.0, **NATIVE), keys("rope_scaling")),
        "rope_lengths",
        "factor 4, but window/original is 8",
    ),
    "dynamic with a raised window": (
        rope("dynamic", factor=8.0, **NATIVE),
        "rope_lengths",
        "dynamic never scales",
    ),
    "dynamic far beyond theta": (
        rope("dynamic", 16384, factor=4.0),
        "rope_lengths",
        "dynamic never scales",
    ),
    "short against long": (
        longrope(short_factor=[1.0] * 8),
        "rope_type_fields",
        "short_factor differs from long_factor",
    ),
    "longrope without attention_factor": (
        longrope(attention_factor=None),
        "rope_type_fields",
        "longrope without attention_factor",
    ),
    "longrope without mscale": (
        longrope(short_mscale=None, long_mscale=None),
        "rope_type_fields",
        "short_mscale None against attention_factor 1.2",
    ),
    "an attention factor in the spelling of YaRN's authors": (
        rope("yarn", factor=8.0, attn_factor=0.5, **NATIVE),
        "rope_type_fields",
        "attn_factor 0.5: vLLM before 0.33 and SGLang multiply by it (0.603972), transformers does",
    ),
    "the native window on top": (
        both(rope("yarn", factor=8.0, **NATIVE), keys(**NATIVE)),
        "top_level_original_length",
        "128",
    ),
    "tables rounded to bfloat16": (
        store_tables(plain_table().float().bfloat16()),
        "stored_inv_freq",
        "the whole table rounded to bfloat16",
    ),
    "tables rounded to float16": (
        store_tables(plain_table().half()),
        "stored_inv_freq",
        "the whole table rounded to float16",
    ),
    "tables of another theta": (
        store_tables(plain_table(5e5).float()),
        "stored_inv_freq",
        "rotary_emb.inv_freq: pair",
    ),
    "tables of another head": (
        store_tables(plain_table().float()[:4]),
        "stored_inv_freq",
        "rotary_emb.inv_freq: 4 pairs",
    ),
    "a short tokenizer": (tokenizer(64), "tokenizer_limit", "64"),
    "a smaller vocabulary": (
        lambda folder: _add_tokens(folder),
        "vocabulary",
        "384 rows, vocab_size 384, largest token id 384",
    ),
    "a tied head that differs": (tensors(another_head), "tied_embeddings", "stored head different"),
    "a head that is not there": (
        keys(tie_word_embeddings=False),
        "tied_embeddings",
        "tie_word_embeddings False, stored head absent",
    ),
    "NaN in config.json": (keys(attention_dropout=math.nan), "config_json", "NaN is no JSON"),
}


def _add_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokens = read_json(path)
    pad = {**tokens["added_tokens"][0], "id": 384, "content": "[PAD]"}
    write_json(path, {**tokens, "added_tokens": [*tokens["added_tokens"], pad]})


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_refused_with_the_reason(copy, case):
    damage, words = UNREADABLE[case]
    damage(copy)
    with pytest.raises(InvalidInput) as caught:
        prove(copy, probe=never_asked)
    assert words in caught.value.message


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_named_without_loading_anything(copy, case):
    damage, name, words = MALFORMED[case]
    damage(copy)
    proof = prove(copy, probe=never_asked)
    assert not proof["ok"]
    assert words in failures(proof).get(name, f"{name} passed"), failures(proof)
    assert set(proof["runtimes"]) == set(RUNTIMES)
    assert "hint" in proof["checks"][name]


@pytest.mark.parametrize("case", MIS_SCALED)
def test_what_is_mis_scaled_is_named(copy, case):
    damage, name, words = MIS_SCALED[case]
    damage(copy)
    proof = prove(copy)
    assert not proof["ok"]
    assert words in failures(proof).get(name, f"{name} passed"), failures(proof)
    assert "hint" in proof["checks"][name]


def test_a_raised_window_with_nothing_else_wrong_has_only_its_defect(copy):
    """The checks do not cry together: one accident, one name."""
    rope("yarn", factor=4.0, **NATIVE)(copy)
    assert set(failures(prove(copy))) == {"rope_lengths"}
    rope("yarn", factor=8.0, **NATIVE)(copy)
    assert failures(prove(copy)) == {}


# ── with the base, with a rope.json, with an adapter ─────────────────────────────────────────


def test_the_table_of_the_base_under_a_longer_window(copy, tiny_llama):
    both(keys(max_position_embeddings=512), tokenizer(512))(copy)
    assert failures(prove(copy)) == {}  # 512 tokens at θ 10⁴ are no evidence by themselves
    found = failures(prove(copy, base=tiny_llama))
    assert set(found) == {"scaling"}
    assert (
        "the table is the base's own (default, θ 10000, 128 tokens), the window is 512"
        in (found["scaling"])
    )


def test_what_the_base_is_right_about_is_no_defect(copy, tiny_llama):
    """A model fine-tuned at the base's own window, and one that was extended."""
    assert failures(prove(copy, base=tiny_llama)) == {}
    rope("yarn", factor=8.0, **NATIVE)(copy)
    assert failures(prove(copy, base=tiny_llama)) == {}


def test_a_native_window_beside_a_type_that_needs_none_is_no_defect(copy):
    plain = {"rope_type": "default", "rope_theta": 1e4, **NATIVE}
    keys(rope_theta=1e4, rope_parameters=plain)(copy)
    assert failures(prove(copy)) == {}


def test_the_theta_and_the_scaling_of_the_base(copy, tiny_llama, tmp_path):
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    keys(rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 5e5})(base)
    assert failures(prove(copy, base=base)) == {
        "rope_theta": "θ lost: 10000 here, 500000 in the base"
    }
    llama3(factor=8.0)(base)
    assert failures(prove(copy, base=base)) == {
        "scaling": "scaling lost: the base reads llama3 ×8 over 128, θ 10000, this default, θ 10000"
    }


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    return merge(make_base(folder / "base"), None, folder / "model")


def test_scaling_lost_beside_a_rope_json(extended, tmp_path):
    """What a foreign merge leaves of a directory that giraffe wrote."""
    copy = Path(shutil.copytree(extended, tmp_path / "copy"))
    plain = {"rope_type": "default", "rope_theta": 1e4}
    keys("rope_scaling", rope_parameters=plain)(copy)
    proof = prove(copy)
    assert "rope_type: default against yarn" in failures(proof)["rope_parameters"]
    assert "the scaling was lost" in proof["checks"]["rope_parameters"]["hint"]
    assert {"inv_freq", "attention_factor"} <= set(failures(proof))


def test_a_rope_json_rounded_to_bfloat16(extended, tmp_path):
    copy = Path(shutil.copytree(extended, tmp_path / "copy"))
    written = read_json(copy / "rope.json")
    rounded = torch.tensor(written["inv_freq"]).bfloat16().tolist()
    write_json(copy / "rope.json", {**written, "inv_freq": rounded})
    found = failures(prove(copy))
    assert set(found) == {"rope_json_table", "inv_freq", "files_as_written"}
    assert "the whole table rounded to bfloat16" in found["rope_json_table"]


def test_an_adapter_is_told_apart_from_a_model(tiny_llama, tmp_path):
    adapter = make_adapter(tmp_path / "run" / "adapter", tiny_llama)
    with pytest.raises(
        InvalidInput, match="holds a PEFT adapter for .*tiny-llama.*, no model"
    ) as a:
        prove(adapter)
    assert "merge_and_unload" in str(a.value.hint)
    (tmp_path / "run" / "run.yaml").write_text("")
    with pytest.raises(InvalidInput) as caught:
        prove(adapter)
    assert f"run giraffe merge {tmp_path / 'run'}" in str(caught.value.hint)
    spaced = Path(shutil.copytree(tmp_path / "run", tmp_path / "my run"))
    with pytest.raises(InvalidInput) as caught:
        prove(spaced / "adapter")
    assert caught.value.hint == (
        f"run giraffe merge '{spaced}', then giraffe verify '{spaced / 'model'}'"
    )


def test_an_attn_factor_that_says_what_attention_factor_says_is_no_defect():
    """Older vLLM and SGLang then multiply by what transformers does."""
    both_say = {"factor": 8.0, "attention_factor": 0.5 * (0.1 * math.log(8) + 1), **NATIVE}
    fields = {"rope_type": "yarn", "attn_factor": 0.5, **both_say}
    config = {
        "max_position_embeddings": 1024,
        "rope_theta": 1e4,
        "rope_scaling": fields,
        "rope_parameters": {**fields, "rope_theta": 1e4},
    }
    assert check_rope_fields(config, None)["rope_type_fields"]["ok"]
    assert portability(config)["vllm"] == "exact"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("too few factors", "rope_fields: found short_factor has 7 numbers"),
        ("pickled weights", "only pickled weights (pytorch_model.bin)"),
        ("another architecture", "architecture: found Qwen2ForCausalLM of type qwen2"),
        ("no rope fields, long window", "scaling lost: unscaled RoPE with θ 10000"),
        ("half a config.json", "cannot be read as JSON"),
    ],
)
def test_the_command_line_says_so_and_exits_3(giraffe, copy, case, words):
    damage = {**UNREADABLE, **MALFORMED, **MIS_SCALED}[case][0]
    damage(copy)
    done = giraffe("verify", copy)
    assert done.code == 3
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    shown = giraffe("verify", copy, "--json")
    assert shown.code == 3
    assert not shown.stdout or json.loads(shown.stdout)["ok"] is False


def test_stored_tables_that_are_right_pass(copy):
    """Llama 2 as it was published: float32 copies in every layer, which transformers ignores."""
    store_tables(plain_table().float())(copy)
    proof = prove(copy)
    assert failures(proof) == {}
    assert proof["checks"]["stored_inv_freq"]["found"] == "2 tables as claimed"


def test_stored_tables_under_linear_are_the_unscaled_ones(copy):
    """Vicuna 16k: position interpolation divided positions and left the table alone."""
    both(store_tables(plain_table().float()), rope("linear", 128, factor=4.0))(copy)
    assert failures(prove(copy)) == {}


def test_rounding_is_recognised_by_named_numbers():
    """1/3 in bfloat16 is 0.333984375, in float16 0.333251953125; 1 + 2⁻⁸ is a tie, to even 1."""
    third = np.array([1 / 3])
    assert rounding_of(np.array([0.333984375]), third) == "bfloat16"
    assert rounding_of(np.array([0.333251953125]), third) == "float16"
    assert rounding_of(np.array([1.0]), np.array([1 + 2**-8])) == "bfloat16"
    assert rounding_of(third, third) is None


@given(st.lists(st.floats(1e-8, 1.0), min_size=1, max_size=8))
def test_rounding_is_what_torch_rounds_to(values):
    exact = torch.tensor(values, dtype=torch.float32)
    rounded = exact.bfloat16().double().numpy()
    if not np.allclose(rounded, exact.double().numpy(), rtol=1e-6, atol=0):
        assert rounding_of(rounded, exact.double().numpy()) == "bfloat16"


@pytest.mark.parametrize(
    ("value", "is_one"),
    [(0, False), (1, True), (2**63 - 1, True), (2**63, False), (True, False), (8.0, False)],
)
def test_what_a_length_is(value, is_one):
    assert is_length(value) is is_one


def test_a_long_value_is_shown_in_part():
    """Forty signs stand whole: 38 letters in quotes; of more, 37 and three dots."""
    shown = "rope_theta is {}, needs a number above 1"
    assert rope_problems({"rope_theta": "x" * 38}) == [shown.format("'" + "x" * 38 + "'")]
    assert rope_problems({"rope_theta": "x" * 39}) == [shown.format("'" + "x" * 36 + "...")]


# ── nothing is a traceback ───────────────────────────────────────────────────────────────────

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["yarn", "su", "8"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
ROPE_KEYS = [
    *("type", "factor", "rope_theta", "original_max_position_embeddings"),
    *("short_factor", "long_factor", "attention_factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "long_mscale"),
]
KINDS = st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3", "axial"])
FIELDS = st.fixed_dictionaries(
    {"rope_type": KINDS | JSON},
    optional={key: JSON | st.floats(1, 9) | st.just([2.0] * 8) for key in ROPE_KEYS},
)


@given(FIELDS | JSON, FIELDS | JSON, st.just(1024) | JSON, st.just(1e4) | JSON, JSON)
def test_any_rope_fields_have_a_sentence_for_every_runtime(
    scaling, parameters, window, theta, original
):
    config = {
        **TINY,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
        "max_position_embeddings": window,
        "rope_theta": theta,
        "original_max_position_embeddings": original,
    }
    assert all(isinstance(problem, str) for problem in rope_problems(config))
    for answers in (runtimes(config, None), runtimes(config, 64), portability(config)):
        assert set(answers) == set(RUNTIMES)
        assert all(answers.values())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_value_under_any_key_is_answered(tiny_llama, copy, data):
    """`verify_directory` answers or raises `InvalidInput`; the model is not loaded here."""
    config = read_json(tiny_llama / "config.json")
    names = [*config, "rope_theta", "rope_scaling", "head_dim", "quantization_config", "auto_map"]
    changed = data.draw(st.dictionaries(st.sampled_from(names), JSON | FIELDS, max_size=3))
    write_json(copy / "config.json", {**config, **changed})
    unanswered = {"loaded": {"error": "not tried here"}}
    proof = prove(copy, base=tiny_llama, probe=lambda request: unanswered)
    assert not proof["ok"]
    assert json.dumps(proof)
