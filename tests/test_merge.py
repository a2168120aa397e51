"""Merged weights against PEFT's own merge; what is copied, refused, skipped and left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_runs import failures, make_adapter, make_base, merge, prove, table_for

import giraffe_cli.merge as merge_module
from giraffe_cli.adapter import read_adapter
from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.merge import merge_stage
from giraffe_cli.merge_checks import check_same_base
from giraffe_cli.progress import SilentReporter
from giraffe_cli.run_files import base_of
from giraffe_cli.rundir import read_json, write_sealed
from giraffe_cli.tensor_stream import read_layout, read_tensors, tensor_digests, write_shard
from giraffe_cli.updates import LoraUpdate

BFLOAT16_STEP = 2.0**-7  # relative, at most


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The independent reference: PEFT's merge of the base in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_pefts(tmp_path, tied, dtype, rslora):
    base = make_base(tmp_path / "base", dtype, "150KB", tie_word_embeddings=tied)
    adapter = make_adapter(tmp_path / "adapter", base, use_rslora=rslora)
    out = merge(base, adapter, tmp_path / "out")

    names = sorted(path.name for path in base.glob("*.safetensors*"))
    assert len(names) >= 3  # two shards and their index
    assert sorted(path.name for path in out.glob("*.safetensors*")) == names

    found, expected, original = weights_of(out), merged_by_peft(base, adapter), weights_of(base)
    assert found.keys() == original.keys()
    assert ("lm_head.weight" in found) is not tied
    changed = {name for name in found if not torch.equal(found[name], original[name])}
    assert len(changed) == 6  # three projections in each of two layers
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        if dtype == torch.float32:  # float32 sums in another order
            torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=0)
        else:  # one rounding: half a step, wherever float32 does not sit on the edge
            torch.testing.assert_close(
                tensor.float(), expected[name], atol=1e-7, rtol=0.501 * BFLOAT16_STEP
            )


@given(
    out_dim=st.integers(1, 5),
    in_dim=st.integers(1, 5),
    rank=st.integers(1, 3),
    scaling=st.floats(0.125, 8),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_an_update_is_rounded_once(out_dim, in_dim, rank, scaling, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_dim, in_dim, generator=generator).bfloat16()
    down = torch.randn(rank, in_dim, generator=generator)
    up = torch.randn(out_dim, rank, generator=generator)
    merged = LoraUpdate(down, up, scaling).merged(weight)

    exact = weight.double() + scaling * (up.double() @ down.double())
    magnitude = weight.double().abs() + scaling * (up.double().abs() @ down.double().abs())
    assert merged.dtype == torch.bfloat16
    # Half a bfloat16 step of the result, and the last bits of the float32 sum before it.
    bound = exact.abs() * BFLOAT16_STEP / 2 * 1.001 + magnitude * 2.0**-20
    assert ((merged.double() - exact).abs() <= bound).all()


def test_scaling_is_alpha_over_rank_by_hand(tmp_path):
    adapter = tmp_path
    save_file(
        {
            "base_model.model.m.lora_A.weight": torch.tensor([[1.0, 2.0]]),
            "base_model.model.m.lora_B.weight": torch.tensor([[3.0], [4.0]]),
        },
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2}')
    update = read_adapter(adapter)["m.weight"].load()
    merged = update.merged(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert merged.tolist() == [[7.0, 12.0], [8.0, 17.0]]


def test_without_adapter_the_weights_are_the_bases_bytes(tmp_path):
    base = make_base(tmp_path / "base", torch.bfloat16, "80KB")
    out = merge(base, None, tmp_path / "out")
    assert tensor_digests(out) == tensor_digests(base)
    for path in out.iterdir():
        assert path.stat().st_nlink == 1
        assert not path.is_symlink()


def test_the_directory_says_what_it_is(tmp_path, base, adapter):
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    out = merge(base, adapter, tmp_path / "out")
    (base / "pytorch_model.bin").unlink()
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "rope.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = read_json(out / "manifest.json")
    assert manifest["tensors"] == tensor_digests(out)
    assert read_json(out / "config.json")["max_position_embeddings"] == 1024
    assert read_layout(out / "model.safetensors").metadata["format"] == "pt"


def test_named_chat_templates_go_along(tmp_path, base, adapter):
    named = base / "additional_chat_templates" / "rag.jinja"
    named.parent.mkdir()
    named.write_text("{{ documents }}")
    out = merge(base, adapter, tmp_path / "out")
    shutil.rmtree(named.parent)
    inside = str(named.relative_to(base))
    assert (out / inside).read_text() == "{{ documents }}"
    assert inside in read_json(out / "manifest.json")["files"]


def test_a_finished_merge_is_not_repeated_and_a_changed_one_is(tmp_path, base, adapter):
    out = merge(base, adapter, tmp_path / "out")
    first = (out / "model.safetensors").stat().st_ino
    merge(base, adapter, out)
    assert (out / "model.safetensors").stat().st_ino == first
    merge(base, adapter, out, strategy="linear")
    assert read_json(out / "rope.json")["strategy"] == "linear"
    merge(base, None, out, strategy="linear")
    assert tensor_digests(out) == tensor_digests(base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_damaged_output_is_written_again(tmp_path, base, adapter):
    out = merge(base, adapter, tmp_path / "out")
    expected = tensor_digests(out)
    flip_last_byte(out / "model.safetensors")
    assert tensor_digests(out) != expected
    merge(base, adapter, out)
    assert tensor_digests(out) == expected


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_merge_that_stops_midway_leaves_the_old_model(tmp_path, base, adapter, monkeypatch):
    out = merge(base, None, tmp_path / "out")
    before = tensor_digests(out)

    def fail(*_):
        raise GiraffeError("disk full")

    monkeypatch.setattr(merge_module, "finish_directory", fail)
    with pytest.raises(GiraffeError, match="disk full"):
        merge(base, adapter, out)
    assert tensor_digests(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_leftovers_of_a_killed_merge_are_cleared(tmp_path, base, adapter):
    for leftover in ("out.giraffe-building", "out.giraffe-replaced"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "model.safetensors").write_bytes(b"half")
    merge(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path, base, adapter):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInput, match="exists and is no merged model"):
        merge(base, adapter, out)
    assert (out / "thesis.txt").read_text() == "years of work"


def test_a_base_is_never_replaced_by_its_own_extension(tmp_path, base):
    extended = merge(base, None, tmp_path / "model")
    before = tensor_digests(extended)
    checkpoint = dataclasses.replace(inspect(str(base), base), path=extended)
    with pytest.raises(InvalidInput, match="is the base itself"):
        merge_stage(checkpoint, None, table_for(base, "linear"), extended, SilentReporter())
    assert tensor_digests(extended) == before


def changed_config(adapter: Path, tmp_path: Path, **values) -> Path:
    copy = Path(shutil.copytree(adapter, tmp_path / "changed"))
    path = copy / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("modules_to_save", ["lm_head"]),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [7]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("alora_invocation_tokens", [5, 7]),
    ],
)
def test_what_a_plain_merge_would_drop_is_refused(tmp_path, base, adapter, key, value):
    with pytest.raises(InvalidInput, match=key):
        merge(base, changed_config(adapter, tmp_path, **{key: value}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_trained_on_other_weights_is_refused(tmp_path, base, adapter):
    checkpoint = inspect(str(base), base)
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    for trained_on in ({"checkpoint": checkpoint.digest}, {"stage": "train"}):
        (copy / "manifest.json").write_text(json.dumps({"inputs": trained_on, "files": {}}))
        check_same_base(copy, checkpoint)
    (copy / "manifest.json").write_text(json.dumps({"inputs": {"checkpoint": "0" * 64}}))
    with pytest.raises(InvalidInput, match=f"{base} is not what {copy} was trained on"):
        check_same_base(copy, checkpoint)


@pytest.mark.parametrize("kept", [None, [], {}, {"inputs": 3}])
def test_a_manifest_that_is_not_a_runs_names_no_base(tmp_path, base, kept):
    if kept is not None:
        (tmp_path / "manifest.json").write_text(json.dumps(kept))
    check_same_base(tmp_path, inspect(str(base), base))


def renamed_keys(adapter: Path, tmp_path: Path, old: str, new: str) -> Path:
    copy = Path(shutil.copytree(adapter, tmp_path / "changed"))
    tensors = load_file(copy / "adapter_model.safetensors")
    renamed = {key.replace(old, new): value for key, value in tensors.items()}
    save_file(renamed, copy / "adapter_model.safetensors")
    return copy


def test_adapter_keys_without_a_base_tensor_are_named(tmp_path, base, adapter):
    wrong = renamed_keys(adapter, tmp_path, "layers.1.", "layers.9.")
    with pytest.raises(GiraffeError, match=r"3 adapter targets match no tensor .*layers\.9\.") as e:
        merge(base, wrong, tmp_path / "out")
    assert "another base" in (e.value.hint or "")


def test_a_head_tied_to_the_embeddings_has_no_tensor_to_change(tmp_path, base, adapter):
    wrong = renamed_keys(adapter, tmp_path, "model.layers.0.self_attn.q_proj", "lm_head")
    with pytest.raises(GiraffeError, match=r"lm_head\.weight") as caught:
        merge(base, wrong, tmp_path / "out")
    assert "tied" in (caught.value.hint or "")


def test_shapes_that_do_not_fit_are_named(tmp_path, base, adapter):
    wrong = renamed_keys(adapter, tmp_path, "layers.0.mlp.down_proj", "layers.0.mlp.up_proj")
    with pytest.raises(GiraffeError, match=r"up_proj\.weight is \[128, 64\] F32 .*\[64, 128\]"):
        merge(base, wrong, tmp_path / "out")


def test_a_key_that_is_no_lora_matrix_is_refused(tmp_path, base, adapter):
    wrong = renamed_keys(adapter, tmp_path, "lora_A.weight", "lora_magnitude_vector")
    with pytest.raises(GiraffeError, match="lora_magnitude_vector"):
        merge(base, wrong, tmp_path / "out")


def test_an_adapter_of_another_table_is_refused(tmp_path, base, adapter):
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (copy / "rope.json").write_text(json.dumps(table_for(base, "linear").to_json()))
    with pytest.raises(InvalidInput, match="was trained with linear to 1024 .* asked for yarn"):
        merge(base, copy, tmp_path / "out")
    merge(base, copy, tmp_path / "out", strategy="linear")


TABLES = [f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in (0, 1)]


@pytest.mark.parametrize("shards", ["1GB", "150KB"])
def test_rotary_tables_that_old_conversions_store_are_left_out(tmp_path, shards):
    """They are the old table, which `verify` refuses beside the new one, after all the training;
    a merge that keeps the base's RoPE keeps them."""
    base = make_base(tmp_path / "base", torch.float32, shards)
    path = sorted(base.glob("*.safetensors"))[0]
    stored = {name: torch.arange(8.0) + n for n, name in enumerate(TABLES)}
    save_file({**load_file(path), **stored}, path, {"format": "pt"})
    index = base / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(index.read_text())
        listed["weight_map"] |= dict.fromkeys(TABLES, path.name)
        index.write_text(json.dumps(listed))
    out = merge(base, None, tmp_path / "out")
    assert {*weights_of(base)} - {*weights_of(out)} == {*TABLES}
    if index.exists():
        written = json.loads((out / index.name).read_text())
        assert {*written["weight_map"]} == {*weights_of(out)}
        sizes = (tensor.nbytes for tensor in weights_of(out).values())
        assert written["metadata"]["total_size"] == sum(sizes)
    checkpoint = inspect(str(base), base)
    kept = merge_stage(checkpoint, None, None, tmp_path / "kept", SilentReporter())
    assert {*weights_of(kept)} == {*weights_of(base)}


def test_a_stored_head_that_alone_was_trained_is_refused(tmp_path, base, adapter):
    """On a tied base the merge wrote a head that was not the embeddings."""
    copied = Path(shutil.copytree(base, tmp_path / "base"))
    tensors = load_file(copied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    wrong = renamed_keys(adapter, tmp_path, "model.layers.0.self_attn.q_proj", "lm_head")
    with pytest.raises(GiraffeError, match=r"trained lm_head\.weight and left model\.embed"):
        merge(copied, wrong, tmp_path / "out")


def test_a_merge_into_no_folder_of_its_own_is_refused(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")
    for out in (Path(), Path("/")):
        with pytest.raises(InvalidInput, match=r"is no folder of its own|is no merged model"):
            merge(base, None, out)


def test_weights_that_overflow_are_refused(tmp_path):
    base = make_base(tmp_path / "base", torch.float16)
    adapter = make_adapter(tmp_path / "adapter", base, std=1e4)
    with pytest.raises(GiraffeError, match="not finite in F16"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_that_holds_nan_is_not_said_to_have_diverged(tmp_path):
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("nan")
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidInput, match="down_proj.weight of the base holds NaN"):
        merge(base, adapter, tmp_path / "out")


def test_a_missing_adapter_file_is_named(tmp_path, base):
    with pytest.raises(InvalidInput, match=r"adapter_config\.json does not exist"):
        merge(base, tmp_path, tmp_path / "out")


def test_the_stream_holds_one_tensor_and_keeps_the_order(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(0), "c": torch.tensor(7, dtype=torch.int8)}
    save_file(tensors, tmp_path / "in.safetensors")  # no metadata
    layout = read_layout(tmp_path / "in.safetensors")
    digests = write_shard(
        tmp_path / "out.safetensors", layout, read_tensors(tmp_path / "in.safetensors")
    )
    assert sorted(digests) == ["a", "b", "c"]
    copied = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(copied[name], tensor) for name, tensor in tensors.items())
    assert read_layout(tmp_path / "out.safetensors").metadata == {"format": "pt"}
    assert (tmp_path / "out.safetensors").stat().st_size % 8 == 5  # header of 8s, 12 + 1 bytes


def test_a_payload_of_another_size_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "in.safetensors")
    layout = read_layout(tmp_path / "in.safetensors")
    with pytest.raises(GiraffeError, match="a: 4 bytes for 8"):
        write_shard(tmp_path / "out", layout, [(layout.tensors[0], b"1234")])
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "in.safetensors")
    data = (tmp_path / "in.safetensors").read_bytes()
    (tmp_path / "in.safetensors").write_bytes(data[:-1])
    with pytest.raises(InvalidInput, match="not a whole safetensors file"):
        read_layout(tmp_path / "in.safetensors")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may clean up after it."""


def kill_at(count: int, monkeypatch) -> None:
    """The `count`-th fsync or rename does not happen, and no folder is removed any more."""
    left = [count]

    def guard(real):
        def call(*arguments, **options):
            if left[0] == 0:
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", guard(lambda _: None))
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, guard(getattr(os, name)))


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_at_any_fsync_or_rename_the_next_merge_is_whole(tmp_path, base, adapter, replacing):
    expected = tensor_digests(merge(base, adapter, tmp_path / "expected"))
    out = tmp_path / "out"
    if replacing:
        old = tensor_digests(merge(base, None, out))
    for count in range(1000):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(count, patch)
            try:
                merge(base, adapter, out)
                break
            except Killed:
                pass
        if out.exists():
            assert tensor_digests(out) in ([old, expected] if replacing else [expected])
            assert (out / "manifest.json").exists()
    assert count > 30  # three for each of nine files and the folders
    assert tensor_digests(out) == expected
    merge(base, adapter, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "out"]


# ── a base that was named relative to another folder ─────────────────────────────────────────────


def test_a_base_is_found_from_another_folder(tmp_path, monkeypatch):
    """run.yaml keeps the user's own name; where it lay is in the plan."""
    run, base = tmp_path / "run", tmp_path / "m" / "tiny"
    for folder in (run, base):
        folder.mkdir(parents=True)
    config = build({"target_length": "1k", "model": "m/tiny"})
    write_sealed(run / "plan.json", {"model": {"path": str(base)}})
    assert base_of(run, config) == str(base)
    monkeypatch.chdir(tmp_path)
    assert base_of(run, config) == "m/tiny"
    hub = tmp_path / "snapshots" / "0123abc"
    hub.mkdir(parents=True)
    write_sealed(run / "plan.json", {"model": {"path": str(hub)}})
    assert base_of(run, build({"target_length": "1k", "model": "owner/name"})) == "owner/name"


def rewrite(base: Path, change, **keys) -> Path:
    """`base` with its weights put through `change`, and `keys` in its config."""
    path = base / "model.safetensors"
    save_file({name: change(t) for name, t in load_file(path).items()}, path, {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **keys}))
    return base


@pytest.mark.parametrize(
    ("stored", "said"),
    [(torch.float16, "bfloat16"), (torch.bfloat16, "float16"), (torch.float32, "bfloat16")],
)
def test_a_config_older_than_its_files_says_their_dtype_afterwards(tmp_path, stored, said):
    """The merge was refused, and after all the training: loaders go by the config."""
    changed = rewrite(make_base(tmp_path / "base"), lambda t: t.to(stored), dtype=said)
    out = merge(changed, make_adapter(tmp_path / "adapter", changed), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["dtype"] == str(stored).split(".")[1]
    assert {tensor.dtype for tensor in weights_of(out).values()} == {stored}
    assert failures(prove(out, adapter_dir=tmp_path / "adapter", base=changed)) == {}


@pytest.mark.parametrize(
    ("said", "expected"),
    [("bfloat16", torch.bfloat16), ("float32", torch.float32), (None, torch.bfloat16)],
)
def test_a_base_in_two_dtypes_is_written_in_the_one_that_it_is_loaded_in(tmp_path, said, expected):
    """Matrices of 16 bits, norms of 32; without a dtype in the config the embeddings' counts."""
    base = make_base(tmp_path / "base")
    rewrite(base, lambda t: t.bfloat16() if t.ndim == 2 else t, dtype=said)
    assert failures(prove(base)) == {}
    out = merge(base, make_adapter(tmp_path / "adapter", base), tmp_path / "out")
    assert {tensor.dtype for tensor in weights_of(out).values()} == {expected}
    norm = "model.norm.weight"
    assert torch.equal(weights_of(out)[norm], weights_of(base)[norm].to(expected))
    assert failures(prove(out, adapter_dir=tmp_path / "adapter", base=base)) == {}


def test_a_merge_of_an_earlier_version_in_a_stale_dtype_is_written_again(tmp_path, monkeypatch):
    """It is held by its manifest, and would be refused by `verify` for ever."""
    changed = rewrite(make_base(tmp_path / "base"), lambda t: t.half(), dtype="bfloat16")
    with monkeypatch.context() as patched:
        patched.setattr(merge_module, "say_dtype", lambda *_: None)
        merge(changed, None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    merge(changed, None, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
