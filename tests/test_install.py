"""RoPE fields: on a config, in a model, on disk for both generations of transformers."""

from __future__ import annotations

import json
import shutil

import pytest

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.model.loading import load_model, load_tokenizer, torch_dtype
from giraffe_cli.rope.base import Head, RopeTable, make_table, strategies
from giraffe_cli.rope.install import check_table, config_with_table, finish_directory

every_strategy = pytest.mark.parametrize("name", sorted(strategies()))
TINY = Head(16, 1e4, 128, 1024)


def example(name: str) -> dict:
    """Knobs with which the strategy makes a table on the tiny Llama."""
    return strategies()[name].example(TINY)


def read(path):
    return json.loads(path.read_text())


def stock_rotary(folder):
    """The rotary module of stock transformers, told nothing but the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.model.rotary_emb


@pytest.fixture
def finished(tiny_llama, tmp_path):
    """`finished("yarn")`: a copy of the tiny Llama that says the table everywhere."""

    def make(name, **knobs):
        folder = tmp_path / name
        shutil.copytree(tiny_llama, folder)
        table = make_table(name, knobs or example(name), TINY)
        finish_directory(folder, table)
        return folder, table

    return make


@every_strategy
def test_stock_transformers_reads_the_table_from_the_directory(finished, name):
    folder, table = finished(name)
    rotary = stock_rotary(folder)
    assert rotary.inv_freq.tolist() == pytest.approx(table.inv_freq, rel=3e-7)
    assert rotary.attention_scaling == pytest.approx(table.attention_factor)


@every_strategy
def test_each_generation_of_keys_alone_gives_the_table(finished, name):
    """v4 readers see `rope_theta` and `rope_scaling` only; v5 files have `rope_parameters` only."""
    folder, table = finished(name)
    whole = read(folder / "config.json")
    for dropped in (("rope_parameters",), ("rope_scaling", "rope_theta")):
        kept = {key: value for key, value in whole.items() if key not in dropped}
        (folder / "config.json").write_text(json.dumps(kept))
        assert stock_rotary(folder).inv_freq.tolist() == pytest.approx(table.inv_freq, rel=3e-7)


@every_strategy
def test_both_generations_say_the_same_and_nothing_stands_at_the_top(finished, name):
    folder, table = finished(name)
    config = read(folder / "config.json")
    assert config["rope_parameters"] == table.rope_parameters
    assert config["rope_theta"] == table.rope_parameters["rope_theta"]
    scaling = config.get("rope_scaling", {"rope_type": "default"})
    assert scaling.items() <= table.rope_parameters.items()
    assert "rope_theta" not in scaling
    assert "original_max_position_embeddings" not in config
    assert config["max_position_embeddings"] == 1024
    assert isinstance(config["max_position_embeddings"], int)


def test_default_rope_type_writes_no_scaling(finished):
    folder, _ = finished("ntk")
    assert "rope_scaling" not in read(folder / "config.json")


def test_old_scaling_does_not_survive():
    """`rope_scaling` wins over `rope_parameters` in v5, so a stale one would undo the table."""
    stale = {
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "rope_theta": 5.0,
        "original_max_position_embeddings": 64,
        "hidden_size": 64,
    }
    assert config_with_table(stale, make_table("ntk", {"alpha": 8.0}, TINY)) == {
        "hidden_size": 64,
        "max_position_embeddings": 1024,
        "rope_theta": pytest.approx(1e4 * 8 ** (16 / 14)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": pytest.approx(1e4 * 8 ** (16 / 14)),
            "original_max_position_embeddings": 128,
        },
    }


def test_limits_of_tokenizer_and_generation_follow_the_target(tiny_llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    generation = {"max_length": 128, "temperature": 0.6, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    finish_directory(folder, make_table("yarn", {}, TINY))
    assert load_tokenizer(folder).model_max_length == 1024
    # The name that transformers 4 knows for a plain fast tokenizer.
    tokenizer = read(folder / "tokenizer_config.json")
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read(folder / "generation_config.json") == {**generation, "max_length": 1024}


def test_a_shorter_generation_limit_is_a_choice_and_stays(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"max_length": 20}')
    finish_directory(folder, make_table("yarn", {}, TINY))
    assert read(folder / "generation_config.json") == {"max_length": 20}


def test_a_bare_tokenizer_json_gets_its_limit(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "tokenizer_config.json").unlink()
    finish_directory(folder, make_table("yarn", {}, TINY))
    assert load_tokenizer(folder).model_max_length == 1024


def test_rope_json_holds_the_whole_table_and_finishing_twice_changes_nothing(finished):
    folder, table = finished("yarn", beta_fast=16.0)
    assert RopeTable.from_json(read(folder / "rope.json")) == table
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    finish_directory(folder, table)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_finishing_needs_a_saved_model(tmp_path):
    with pytest.raises(InvalidInput, match=r"config\.json does not exist"):
        finish_directory(tmp_path, make_table("yarn", {}, TINY))


@every_strategy
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_model_carries_the_table_in_float32(tiny_llama, name, dtype):
    table = make_table(name, example(name), TINY)
    model = load_model(tiny_llama, dtype=torch_dtype(dtype), table=table)
    assert str(model.dtype) == f"torch.{dtype}"
    assert not model.training
    assert model.model.rotary_emb.inv_freq.tolist() == pytest.approx(table.inv_freq, rel=3e-7)
    assert model.config.max_position_embeddings == 1024


def test_load_model_without_a_table_keeps_the_directorys(tiny_llama):
    model = load_model(tiny_llama, dtype=torch_dtype("float32"))
    assert model.model.rotary_emb.inv_freq.tolist() == pytest.approx(
        TINY.unscaled_inv_freq().tolist()
    )


def test_check_names_a_rounded_table(tiny_llama):
    import torch

    table = make_table("yarn", {}, TINY)
    model = load_model(tiny_llama, dtype=torch_dtype("float32"), table=table)
    with pytest.raises(GiraffeError, match=r"inv_freq is torch\.bfloat16, needs float32"):
        check_table(model.to(torch.bfloat16), table)
    with pytest.raises(GiraffeError, match=r"inv_freq\[\d\] is .*, the yarn table says"):
        check_table(model.to(torch.float32), table)


def test_check_names_another_table_and_another_attention_factor(tiny_llama):
    table = make_table("yarn", {}, TINY)
    model = load_model(tiny_llama, dtype=torch_dtype("float32"), table=table)
    with pytest.raises(GiraffeError, match="the linear table says"):
        check_table(model, make_table("linear", {}, TINY))
    with pytest.raises(GiraffeError, match=r"attention factor is 1\.20794.* says 1\.41588"):
        check_table(model, make_table("yarn", {"mscale": 2.0}, TINY))


def test_check_refuses_a_model_without_rotary_embedding():
    import torch

    with pytest.raises(GiraffeError, match="no Llama rotary embedding"):
        check_table(torch.nn.Linear(2, 2), None)


def test_finished_directory_is_recognised_as_extended(finished, tmp_path):
    """NTK writes a plain θ, so only rope.json can tell."""
    folder, table = finished("ntk")
    found = inspect(str(folder), tmp_path / "work")
    assert found.native_length == 128
    assert found.rope_theta == 1e4
    assert found.existing_rope["target_length"] == 1024
    assert found.existing_rope["rope_theta"] == table.rope_parameters["rope_theta"]
