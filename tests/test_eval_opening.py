"""What `giraffe eval` opens: adapters beside and without their base, runs, and what is refused."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from tiny_runs import make_adapter, make_base, merge, table_for

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.files import write_sealed_yaml
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.opening import open_checkpoint, run_of
from giraffe_cli.merge import merge_stage
from giraffe_cli.model.loading import load_model
from giraffe_cli.progress import SilentReporter
from giraffe_cli.run_files import was_trained
from giraffe_cli.rundir import read_json, write_json


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(tmp_path, base):
    folder = make_adapter(tmp_path / "adapter", base)
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", {**settings, "base_model_name_or_path": str(base)})
    return folder


def logits(folder):
    with torch.inference_mode():
        return load_model(folder, dtype=torch.float32)(torch.arange(40)[None]).logits


def opened(source, tmp_path, base=None):
    return open_checkpoint(str(source), base, tmp_path / "work", SilentReporter())


def with_peft(base, adapter):
    """The independent reference: PEFT's adapter beside the base, without a merge."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), adapter).eval()
    with torch.inference_mode():
        return model(torch.arange(40)[None]).logits


def test_an_adapter_finds_its_base_and_is_what_peft_makes_of_it(base, adapter, tmp_path):
    (adapter / "rope.json").unlink(missing_ok=True)
    found = opened(adapter, tmp_path)
    expected = with_peft(base, adapter)
    assert (logits(base) - expected).abs().max() > 0.1
    torch.testing.assert_close(logits(found.path), expected, atol=1e-4, rtol=0)
    assert found.native_length == inspect(str(base), tmp_path).native_length
    assert found.existing_rope is None


def test_its_table_is_the_one_it_was_trained_under(base, adapter, tmp_path):
    write_json(adapter / "rope.json", table_for(base, "linear").to_json())
    found = opened(adapter, tmp_path)
    assert found.existing_rope["rope_type"] == "linear"
    assert found.reach == table_for(base, "linear").target_length


def test_the_base_that_is_given_stands_over_the_one_it_names(base, adapter, tmp_path):
    settings = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", {**settings, "base_model_name_or_path": "gone"})
    with pytest.raises(InvalidInput, match="gone does not exist"):
        opened(adapter, tmp_path)
    given = inspect(str(base), tmp_path)
    torch.testing.assert_close(
        logits(opened(adapter, tmp_path, given).path), with_peft(base, adapter), atol=1e-4, rtol=0
    )


def test_an_adapter_that_names_no_base_asks_for_one(adapter, tmp_path):
    settings = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", {**settings, "base_model_name_or_path": None})
    with pytest.raises(InvalidInput, match="names no base") as caught:
        opened(adapter, tmp_path)
    assert caught.value.hint == "pass --base"


def test_the_command_scores_an_adapter_beside_its_base(giraffe, base, adapter, tmp_path):
    done = giraffe(
        *("eval", adapter, "--base", base, "--tasks", "passkey", "--lengths", "384"),
        *("--set", "passkey.depths=1", "--out", tmp_path / "e"),
    )
    assert done.code == 0
    models = read_json(tmp_path / "e" / "results.json")["models"]
    assert models["base"]["sha256"] != models["checkpoint"]["sha256"]


def test_a_run_is_its_model_and_merged_again_where_that_is_gone(base, adapter, tmp_path):
    run, table = tmp_path / "run", table_for(base, "linear")
    write_json(adapter / "rope.json", table.to_json())
    shutil.copytree(adapter, run / "adapter")
    write_json(run / "adapter" / "manifest.json", {})
    write_json(run / "rope.json", table.to_json())
    settings = {"model": str(base), "target_length": table.target_length, "train": {"steps": 1}}
    write_sealed_yaml(run / "run.yaml", settings)
    expected = opened(adapter, tmp_path / "a")
    found = opened(run, tmp_path / "b")
    assert (found.digest, found.reach) == (expected.digest, table.target_length)
    shutil.copytree(base, run / "model")
    assert opened(run, tmp_path / "c").path == run / "model"
    assert run_of(str(run)) == run_of(str(run / "adapter")) == run


def test_anything_else_is_opened_as_ever(base, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    assert opened(copy, tmp_path) == inspect(str(copy), tmp_path)
    assert not (tmp_path / "work").exists()


def test_a_merge_of_ours_was_trained_and_one_of_a_foreign_adapter_or_of_none_was_not(
    tiny_llama, tmp_path
):
    adapter = make_adapter(tmp_path / "adapter", tiny_llama)
    ours = merge(tiny_llama, adapter, tmp_path / "ours")
    foreign = merge_stage(
        inspect(str(tiny_llama), tiny_llama), adapter, None, tmp_path / "foreign", SilentReporter()
    )
    untrained = merge(tiny_llama, None, tmp_path / "zero-shot")
    found = [was_trained(folder) for folder in (ours, foreign, untrained, tiny_llama)]
    assert found == [True, False, False, False]
    (ours / "manifest.json").write_text("{")
    assert not was_trained(ours)
