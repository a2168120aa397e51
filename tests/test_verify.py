"""A good directory passes every check; each kind of damage is found and named."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import TARGET, failures, make_adapter, make_base, merge, prove

from giraffe_cli import verify_judge, verify_probe
from giraffe_cli.errors import InvalidInput
from giraffe_cli.rope.base import RopeTable, longrope_parameters, make_table
from giraffe_cli.rope.install import finish_directory
from giraffe_cli.rundir import read_json, write_json
from giraffe_cli.verify import ask_probe, build_request


@dataclasses.dataclass(frozen=True)
class Run:
    base: Path
    adapter: Path
    model: Path


def build_run(folder: Path, dtype: torch.dtype = torch.float32, **changes) -> Run:
    base = make_base(folder / "base", dtype, "150KB", **changes)
    adapter = make_adapter(folder / "adapter", base)
    return Run(base, adapter, merge(base, adapter, folder / "model"))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run.model, tmp_path / "copy"))


def test_a_good_directory_passes_in_a_process_that_never_imports_giraffe(run):
    answers = []

    def ask(request):
        answers.append(ask_probe(request))
        return answers[0]

    proof = prove(run.model, adapter_dir=run.adapter, base=run.base, full=True, probe=ask)
    assert failures(proof) == {}
    assert proof["ok"]
    modules = set(answers[0]["modules"])
    assert {"torch", "transformers", "peft"} <= modules
    assert not {name for name in modules if "giraffe" in name}
    assert "giraffe" not in Path(verify_probe.__file__).read_text(encoding="utf-8")
    assert set(proof["checks"]) >= {
        "tensors_as_written",
        "weights",
        "inv_freq",
        "attention_factor",
        "merged_weights",
        "logits_short",
        "logits_far",
        "logits_full",
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_directories_pass(tmp_path, dtype, tied):
    run = build_run(tmp_path, dtype, tie_word_embeddings=tied)
    proof = prove(run.model, adapter_dir=run.adapter, base=run.base)
    assert failures(proof) == {}
    assert "KL" in proof["checks"]["logits_far"]["found"]


def test_float16_weights_below_its_normal_numbers_are_rounded_once_too(tmp_path):
    """One weight in 400 of a Llama is below 6.1e-5, where float16 has steps of 2^-24."""
    base = make_base(tmp_path / "base", torch.float16)
    adapter = make_adapter(tmp_path / "adapter", base, std=1e-3)
    model = merge(base, adapter, tmp_path / "model")
    assert failures(prove(model, adapter_dir=adapter, base=base)) == {}

    (path,) = model.glob("*.safetensors")
    tensors = load_file(path)
    name = "model.layers.0.mlp.down_proj.weight"
    values = tensors[name].view(-1)
    values[values.abs().argmin()] += 2.0**-24  # one such step away from what was rounded
    save_file(tensors, path, {"format": "pt"})
    found = failures(prove(model, adapter_dir=adapter, base=base))
    assert found["merged_weights"].startswith(name)


def test_16_bit_weights_are_computed_with_in_float32_and_stay_as_stored(tmp_path):
    from transformers import LlamaForCausalLM

    base = make_base(tmp_path / "base", torch.bfloat16)
    windows = [{"name": "w", "start": 7, "length": 32}]
    reference = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = verify_probe.logits_of(reference, windows, seed=0)["w"]

    model, _ = verify_probe.load(str(base))
    before = verify_probe.tensor_digests(model)
    narrow = verify_probe.logits_of(model, windows, seed=0)["w"]
    verify_probe.widen_blocks(model)
    for _ in range(2):  # the second pass starts from what the first restored
        wide = verify_probe.logits_of(model, windows, seed=0)["w"]
        torch.testing.assert_close(wide, expected, rtol=0, atol=1e-6)
    assert (narrow - expected).abs().max() > 1e-4
    assert verify_probe.tensor_digests(model) == before


@pytest.mark.parametrize(
    ("merged", "agreement"),
    [([0.0, 1.0], 1.0), ([1.0, 0.0], 0.0)],
)
def test_top1_forgives_only_what_the_dtype_cannot_resolve(merged, agreement):
    rows = torch.tensor([merged])
    clear, tie = torch.tensor([[8.0, 16.0]]), torch.tensor([[15.95, 16.0]])
    assert verify_probe.compare(rows, clear, "bfloat16")["top1_agreement"] == agreement
    assert verify_probe.compare(rows, tie, "bfloat16")["top1_agreement"] == 1.0
    assert verify_probe.compare(rows, tie, "float32")["top1_agreement"] == agreement


def test_kl_by_hand():
    """KL((1/2, 1/2) ‖ (3/4, 1/4)) = ln 2 - ln 3 / 2."""
    merged, adapted = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    kl = verify_probe.compare(merged, adapted, "bfloat16")["mean_kl"]
    assert kl == pytest.approx(math.log(2) - math.log(3) / 2, rel=1e-6)


def test_the_far_window_ends_at_the_last_position(run):
    request = build_request(run.model, None, None, None, read_json(run.model / "config.json"), True)
    assert request["windows"] == [
        {"name": "short", "start": 0, "length": 64},
        {"name": "far", "start": TARGET - 512, "length": 512},
    ]
    assert request["full_length"] == TARGET


# ── damage ───────────────────────────────────────────────────────────────────────────────────


def edit_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = read_json(folder / "config.json")
    change(config)
    write_json(folder / "config.json", config)


def flip_a_weight_byte(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def change_the_factor(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["rope_parameters"]["factor"] = config["rope_scaling"]["factor"] = 4.0

    edit_config(folder, change)


def change_theta(folder: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 20000.0

    edit_config(folder, change)


def limit_the_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), "model_max_length": 128})


def shorten_the_index(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = read_json(path)
    del index["weight_map"]["model.norm.weight"]
    write_json(path, index)


def truncate_a_shard(folder: Path) -> None:
    path = min(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {
    "a flipped byte": (flip_a_weight_byte, "tensors_as_written", "model."),
    "a factor": (change_the_factor, "inv_freq", "pair "),
    "a factor, as config": (change_the_factor, "rope_parameters", "factor: 4.0 against 8.0"),
    "rope_scaling dropped": (
        lambda folder: edit_config(folder, lambda c: c.pop("rope_scaling")),
        "rope_spellings",
        "rope_type: default against yarn",
    ),
    "one theta": (
        lambda folder: edit_config(folder, lambda c: c.update(rope_theta=20000.0)),
        "rope_spellings",
        "rope_theta: 20000.0 against 10000.0",
    ),
    "both thetas": (change_theta, "rope_parameters", "rope_theta: 20000.0 against 10000.0"),
    "a fractional window": (
        lambda folder: edit_config(folder, lambda c: c.update(max_position_embeddings=1024.0)),
        "max_position_embeddings",
        "1024.0",
    ),
    "the native window": (
        lambda folder: edit_config(folder, lambda c: c.update(max_position_embeddings=128)),
        "max_position_embeddings",
        "128",
    ),
    "an original length on top": (
        lambda folder: edit_config(
            folder, lambda c: c.update(original_max_position_embeddings=128)
        ),
        "top_level_original_length",
        "128",
    ),
    "another dtype": (
        lambda folder: edit_config(folder, lambda c: c.update(dtype="bfloat16")),
        "weights",
        "loads as bfloat16",
    ),
    "an untied head": (
        lambda folder: edit_config(folder, lambda c: c.update(tie_word_embeddings=False)),
        "tied_embeddings",
        "stored head absent",
    ),
    "remote code": (
        lambda folder: edit_config(folder, lambda c: c.update(auto_map={"AutoModel": "m.M"})),
        "architecture",
        "auto_map",
    ),
    "a tokenizer limit": (limit_the_tokenizer, "tokenizer_limit", "128"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "tokenizer_limit",
        "Error",
    ),
    "pickled weights": (
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b""),
        "safetensors_only",
        "pytorch_model.bin",
    ),
    "an index entry": (shorten_the_index, "weight_files", "model.norm.weight"),
    "a truncated shard": (truncate_a_shard, "weight_files", "model-00001"),
    "a table that is gone": (
        lambda folder: (folder / "rope.json").unlink(),
        "files_as_written",
        "rope.json is gone",
    ),
    "another epsilon": (
        lambda folder: edit_config(folder, lambda c: c.update(rms_norm_eps=0.01)),
        "files_as_written",
        "config.json is altered",
    ),
    "another tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text() + "\n"
        ),
        "files_as_written",
        "tokenizer.json is altered",
    ),
    "settings that are no JSON": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "companions",
        "generation_config.json",
    ),
    "an adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "companions",
        "a PEFT adapter",
    ),
    "a second set of weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        "weight_files",
        "two sets of weights",
    ),
    "another rope.json": (
        lambda folder: write_json(
            folder / "rope.json", {**read_json(folder / "rope.json"), "attention_factor": 1.5}
        ),
        "attention_factor",
        "1.20794",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(copy, damage):
    break_it, name, words = DAMAGES[damage]
    break_it(copy)
    proof = prove(copy)
    assert not proof["ok"]
    assert words in failures(proof).get(name, f"{name} passed"), failures(proof)


def test_a_table_that_was_not_trained_is_named(run):
    head = dataclasses.replace(table_of(run), strategy="yarn")
    other = make_table("linear", {}, _head(head))
    found = failures(prove(run.model, table=other))
    assert {"inv_freq", "attention_factor", "rope_json", "rope_parameters"} == set(found)
    assert found["rope_json"] == "yarn to 1024, attention factor 1.20794"


def table_of(run: Run) -> RopeTable:
    return RopeTable.from_json(read_json(run.model / "rope.json"))


def _head(table: RopeTable):
    from giraffe_cli.rope.base import Head

    return Head(
        table.head_dim,
        table.rope_theta,
        table.original_max_position_embeddings,
        table.target_length,
    )


def test_a_rounded_adapter_is_not_the_one_that_was_merged(run, tmp_path):
    rounded = Path(shutil.copytree(run.adapter, tmp_path / "adapter"))
    tensors = load_file(rounded / "adapter_model.safetensors")
    save_file(
        {name: tensor.bfloat16().float() for name, tensor in tensors.items()},
        rounded / "adapter_model.safetensors",
    )
    found = failures(prove(run.model, adapter_dir=rounded, base=run.base))
    assert {"merged_weights", "logits_short", "logits_far"} <= set(found)
    assert "largest difference" in found["logits_far"]


def test_an_adapter_that_was_never_merged_is_named_in_16_bits(tmp_path):
    run = build_run(tmp_path, torch.bfloat16)
    plain = merge(run.base, None, tmp_path / "plain")
    found = failures(prove(plain, adapter_dir=run.adapter, base=run.base))
    assert {"merged_weights", "logits_far"} <= set(found)
    assert "KL" in found["logits_far"]


def test_another_base_is_a_reason_not_a_traceback(run, tmp_path):
    other = make_base(tmp_path / "other", hidden_size=32)
    found = failures(prove(run.model, adapter_dir=run.adapter, base=other))
    assert set(found) == {"logits", "config_of_base"}
    assert "size mismatch" in found["logits"] or "mismatch" in found["logits"]


def test_a_resized_vocabulary_is_named(run, tmp_path):
    other = make_base(tmp_path / "other", vocab_size=400)
    assert failures(prove(run.model, base=other)) == {"vocabulary_of_base": "384"}


def test_not_finite_logits_are_named(copy):
    path = max(copy.glob("*.safetensors"))
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    found = failures(prove(copy))
    assert found["finite_logits"] == "not finite in short, far"
    assert "model.norm.weight" in found["tensors_as_written"]


def test_a_probe_that_dies_is_a_failed_check(run, monkeypatch, tmp_path):
    program = tmp_path / "dies.py"
    program.write_text("import sys; print('no room', file=sys.stderr); sys.exit(7)")
    monkeypatch.setattr("giraffe_cli.verify.__file__", str(tmp_path / "verify.py"))
    program.rename(tmp_path / "verify_probe.py")
    found = failures(prove(run.model, probe=ask_probe))
    assert found == {"loading": "the process ended with code 7: no room"}


def test_the_probe_ends_with_the_process_that_asked():
    """A batch system's SIGTERM left it behind, with the model in memory."""
    starts = (
        "import os, subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-I', sys.argv[1], str(os.getpid())])"
    )
    command = [sys.executable, "-c", starts, verify_probe.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
        assert asking.wait() == 0
        assert asking.stdout is not None
        # its end is the probe's, which waits for its request as long as stdin is open
        assert asking.stdout.read() == b""


def test_a_folder_without_config_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InvalidInput, match=r"has no config\.json") as caught:
        prove(tmp_path)
    assert caught.value.hint == f"run giraffe verify {tmp_path / 'model'}"


# ── longrope and foreign checkpoints ─────────────────────────────────────────────────────────


def make_longrope(folder: Path, **changes) -> Path:
    """`folder` with its yarn table written as longrope, then `changes` to those fields."""
    table = RopeTable.from_json(read_json(folder / "rope.json"))
    fields = longrope_parameters(_head(table), np.array(table.inv_freq), table.attention_factor)
    fields = {"rope_theta": table.rope_theta, **fields, **changes}
    fields = {key: value for key, value in fields.items() if value is not None}
    finish_directory(folder, dataclasses.replace(table, rope_parameters=fields))
    (folder / "manifest.json").unlink()
    return folder


def test_longrope_passes(copy):
    with_warnings = prove(make_longrope(copy))
    assert failures(with_warnings) == {}
    said = with_warnings["runtimes"]
    assert said["vllm"] == "serves 1024 tokens with longrope as written"
    assert "drops the longrope factors" in said["llama.cpp"]


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"short_mscale": None}, "rope_type_fields", "short_mscale None"),
        ({"long_mscale": 1.0}, "rope_type_fields", "long_mscale 1.0 against"),
        ({"attention_factor": None}, "attention_factor", "1.19"),
        ({"short_factor": [1.0] * 8}, "one_table", "changes between"),
    ],
)
def test_incomplete_longrope_is_named(copy, changes, name, words):
    found = failures(prove(make_longrope(copy, **changes)))
    assert words in found.get(name, "passed"), found


def test_a_foreign_checkpoint_is_held_to_its_own_claim(tiny_llama):
    proof = prove(tiny_llama)
    assert failures(proof) == {}
    assert "tensors_as_written" not in proof["checks"]
    assert (
        proof["runtimes"]["transformers-v4"] == "reads default, θ 10000, the same as transformers 5"
    )


def test_a_part_of_the_answer_that_failed_is_a_failed_check_with_its_reason(tmp_path):
    said = {"error": "OSError: gone"}
    fine = {"dtype": "float32", "inv_freq": [1.0], "attention_factor": 1.0}
    parts = [
        {"weights": verify_judge.check_weights(said, tmp_path, {})},
        verify_judge.check_table({"at_load": said}, {}, None),
        verify_judge.check_table({"at_load": fine, "at_target": said}, {}, None),
        verify_judge.check_finite({"logits": said}),
        verify_judge.check_logits(said, "float32"),
    ]
    found = [(name, c["ok"], c["found"]) for part in parts for name, c in part.items()]
    names = ("weights", "inv_freq", "inv_freq", "finite_logits", "logits")
    assert found == [(name, False, "OSError: gone") for name in names]


def test_a_table_that_is_not_kept_in_float32_is_named():
    table = {"inv_freq": [1.0], "attention_factor": 1.0}
    for dtype in ("float32", "bfloat16"):
        checks = verify_judge.check_table({"at_load": {**table, "dtype": dtype}}, {}, None)
        assert checks["one_table"]["ok"]
        assert checks["inv_freq_dtype"]["ok"] == (dtype == "float32")
        assert checks["inv_freq_dtype"]["found"] == dtype


@pytest.mark.parametrize(
    ("dtype", "steps", "ok"),
    [("float32", 8.0, True), ("float32", 8.1, False), ("bfloat16", 0.52, False)],
)
def test_how_far_a_merged_tensor_may_be_depends_on_its_dtype(dtype, steps, ok):
    entry = {"missing": [], "changed": [], "equal": 1, "worst": "w", "steps": steps}
    assert verify_judge._check_merged(entry, dtype)["ok"] is ok


def test_what_was_never_answered_is_a_failed_check():
    for part in (verify_judge.check_finite({}), verify_judge.check_logits({}, "float32")):
        assert [(c["ok"], c["found"]) for c in part.values()] == [(False, "not computed")]


def test_16_bit_logits_may_not_drift_though_every_top_1_agrees():
    entry = {"max_abs_difference": 0.1, "positions": 64, "top1_agreement": 1.0}
    near, far = ({**entry, "mean_kl": kl} for kl in (4e-3, 4.1e-3))
    found = [verify_judge._check_window(e, "bfloat16")["ok"] for e in (near, far)]
    assert found == [True, False]


def test_of_64_positions_one_near_tie_may_fall_the_other_way_and_not_two_and_of_256_three():
    entry = {"max_abs_difference": 0.1, "mean_kl": 3e-4, "positions": 64}
    one, two = ({**entry, "top1_agreement": 1 - n / 64} for n in (1, 2))
    many = {**entry, "positions": 1000, "top1_agreement": 0.969}
    three = {**entry, "positions": 256, "top1_agreement": 1 - 3 / 256}
    found = [verify_judge._check_window(e, "bfloat16")["ok"] for e in (one, two, three, many)]
    assert found == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": 0.01}, "rms_norm_eps 0.01 against 1e-06"),
        ({"num_attention_heads": 8, "head_dim": 8, "num_key_value_heads": 4}, "head_dim 8 against"),
    ],
)
def test_sizes_that_no_shape_shows_are_held_against_the_base(run, tmp_path, changes, words):
    """Heads of half the size fit the same matrices, and are another model."""
    folder = Path(shutil.copytree(run.base, tmp_path / "copy"))
    edit_config(folder, lambda config: config.update(changes))
    assert words in failures(prove(folder, base=run.base))["config_of_base"]
    assert "config_of_base" not in failures(prove(run.model, base=run.base))


@pytest.mark.parametrize("entry", ["abc", {"size": 3}], ids=str)
def test_a_manifest_of_somebody_else_is_no_manifest(copy, entry):
    """It was a traceback."""
    foreign = {"tensors": {}, "files": {"config.json": entry, "../x": {"bytes": 1, "sha256": ""}}}
    write_json(copy / "manifest.json", foreign)
    assert "files_as_written" not in prove(copy)["checks"]


def test_files_that_no_loader_reads_may_be_left_out(run, tmp_path):
    """A download takes safetensors, JSON and chat templates."""
    base = Path(shutil.copytree(run.base, tmp_path / "base"))
    (base / "LICENSE").write_text("free")
    out = merge(base, None, tmp_path / "out")
    assert (out / "LICENSE").is_file()
    (out / "LICENSE").unlink()
    assert failures(prove(out)) == {}
    (out / "LICENSE").write_text("another")
    assert failures(prove(out)) == {"files_as_written": "LICENSE is altered"}


def test_a_dtype_that_is_not_the_files_is_told_with_what_to_write(copy):
    edit_config(copy, lambda c: c.update(dtype="bfloat16"))
    proof = prove(copy)
    assert proof["checks"]["weights"]["hint"].startswith('write "dtype": "float32" into')
