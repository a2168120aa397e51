"""`--to adapter`: the folder loads with the lines of its own README, and says the same table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import TARGET, make_adapter, make_base, table_for

from giraffe_cli.config.building import build
from giraffe_cli.config.files import write_sealed_yaml
from giraffe_cli.errors import GiraffeError, UsageError
from giraffe_cli.export.adapter_card import card, overrides
from giraffe_cli.export.base import ExportOptions, make_target
from giraffe_cli.export.targets.adapter import base_name, prove
from giraffe_cli.model.loading import load_model
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import finish_stage, read_json, write_json


def make_run(folder: Path, steps: int = 5, strategy: str = "yarn") -> SimpleNamespace:
    """A run directory as training leaves it, before and after its merge."""
    base = make_base(folder / "base")
    run = folder / "run"
    run.mkdir()
    table = table_for(base, strategy)
    values = {"model": str(base), "target_length": TARGET, "train": {"steps": steps}}
    config = build(values).model_dump(mode="json")
    write_sealed_yaml(run / "run.yaml", config)
    write_json(run / "rope.json", table.to_json())
    if steps:
        make_adapter(run / "adapter", base)
        write_json(run / "adapter" / "rope.json", table.to_json())
        finish_stage(run / "adapter", {"stage": "train"})
    return SimpleNamespace(base=base, run=run, table=table)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> SimpleNamespace:
    made = make_run(tmp_path_factory.mktemp("trained"))
    exported = make_target("adapter").export(str(made.run), ExportOptions(), SilentReporter())
    return SimpleNamespace(**vars(made), out=Path(exported.facts["path"]), exported=exported)


def readme_code(out: Path, language: str) -> str:
    text = (out / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)
    assert found, text
    return found[1]


def logits(model, positions: range) -> torch.Tensor:
    ids = torch.arange(2, 66)[None]
    with torch.no_grad():
        return model(ids, position_ids=torch.tensor([[*positions]]), use_cache=False).logits


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_readmes_peft_lines_give_the_merged_models_logits(trained, tmp_path, monkeypatch):
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.merge import merge_stage

    checkpoint = inspect(str(trained.base), trained.base)
    adapter = trained.run / "adapter"
    merged = merge_stage(checkpoint, adapter, trained.table, tmp_path / "merged", SilentReporter())
    shutil.copytree(trained.out, tmp_path / trained.out.name)
    shutil.copytree(trained.base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)  # the names in the README are relative
    scope: dict = {}
    exec(readme_code(trained.out, "python"), scope)
    rotary = scope["model"].base_model.model.model.rotary_emb
    np.testing.assert_allclose(rotary.inv_freq.double(), trained.table.inv_freq, rtol=1e-6)
    last = range(TARGET - 64, TARGET)
    expected = logits(load_model(merged, dtype=torch.float32), last)
    found = logits(scope["model"].eval(), last)
    # float32 sums in another order: W x + B (A x) against (W + B A) x, on logits of about 1.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    plain = logits(load_model(trained.base, dtype=torch.float32), last)
    assert (plain - expected).abs().max() > 0.1


def test_the_folder_holds_what_both_runtimes_need(trained):
    assert {p.name for p in trained.out.iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "rope.json",
        "hf_overrides.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert trained.out == trained.run / "run-adapter"
    source = trained.run / "adapter" / "adapter_model.safetensors"
    assert (trained.out / source.name).read_bytes() == source.read_bytes()
    assert read_json(trained.out / "rope.json") == trained.table.to_json()
    assert read_json(trained.out / "tokenizer_config.json")["model_max_length"] == TARGET


def test_a_chat_template_goes_along(tmp_path):
    made = make_run(tmp_path)
    (made.base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    exported = make_target("adapter").export(str(made.run), ExportOptions(), SilentReporter())
    copied = Path(exported.facts["path"]) / "chat_template.jinja"
    assert copied.read_text() == "{{ messages[0].content }}"


def test_named_chat_templates_go_along(tmp_path):
    made = make_run(tmp_path)
    named = made.base / "additional_chat_templates" / "rag.jinja"
    named.parent.mkdir()
    named.write_text("{{ documents }}")
    exported = make_target("adapter").export(str(made.run), ExportOptions(), SilentReporter())
    copied = Path(exported.facts["path"]) / "additional_chat_templates" / "rag.jinja"
    assert copied.read_text() == "{{ documents }}"


@pytest.mark.parametrize("cut", [False, True])
def test_damaged_matrices_get_no_name(giraffe, tmp_path, cut):
    """What is read back wrong must not be left under the name that was asked for."""
    run, out = make_run(tmp_path).run, tmp_path / "out"
    weights = run / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] if cut else whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):
        done = giraffe("export", run, "--to", "adapter", "--out", out)
        assert done.code == 3
        assert f"{weights} was altered since it was written" in done.stderr
        assert not out.exists()
    weights.write_bytes(whole)
    assert giraffe("export", run, "--to", "adapter", "--out", out).code == 0


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    run = make_run(tmp_path).run
    monkeypatch.setattr("giraffe_cli.export.targets.adapter.write_json", full)
    with pytest.raises(GiraffeError, match=r"cannot write .*run-adapter: No space left"):
        make_target("adapter").export(str(run), ExportOptions(), SilentReporter())
    assert sorted(p.name for p in run.iterdir()) == ["adapter", "rope.json", "run.yaml"]


def test_a_base_on_the_hub_is_no_path_of_this_machine(trained, tmp_path, monkeypatch):
    """In `/`, as in many a container, `/o/base` would be its path, which the README's link ends
    in."""
    out = Path(shutil.copytree(trained.out, tmp_path / "out"))
    (out / "manifest.json").unlink()
    (out / "README.md").write_text("https://huggingface.co/o/base")
    monkeypatch.chdir("/")
    checks = prove(out, trained.run / "adapter", trained.table, [Path("o/base")])
    assert checks["private_paths"] == {"ok": True, "found": [], "expected": []}


def test_no_path_of_this_machine_is_published(trained):
    config = read_json(trained.out / "adapter_config.json")
    assert config["base_model_name_or_path"] == "base"
    for path in trained.out.iterdir():
        assert str(trained.run.parent).encode() not in path.read_bytes(), path.name
    assert trained.exported.facts["checks"]["private_paths"]["ok"]


@pytest.mark.parametrize(
    ("model", "base_id", "name"),
    [
        ("meta-llama/Llama-2-7b-hf", None, "meta-llama/Llama-2-7b-hf"),
        ("calf", None, "calf"),
        ("/data/models/Llama-2-7b", None, "Llama-2-7b"),
        ("/data/models/Llama-2-7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_the_base_is_named_as_others_know_it(model, base_id, name):
    assert base_name(model, base_id) == name


@pytest.mark.parametrize(
    ("base_id", "told"),
    [
        ("bad", "it has no owner"),
        ("meta-llama/Llama 3; rm", "Repo id must use alphanumeric chars"),
        ("a/b/c", "Repo id must be in the form"),
        ("", "Repo id must use alphanumeric chars"),
        ("../base", "is no Hugging Face id"),
    ],
)
def test_a_base_id_that_is_none_is_refused(trained, tmp_path, base_id, told):
    """It stands in lines to paste; nothing is written."""
    options = ExportOptions(out=tmp_path / "out", base_id=base_id)
    with pytest.raises(UsageError) as caught:
        make_target("adapter").export(str(trained.run), options, SilentReporter())
    assert f"--base-id {base_id!r} is no Hugging Face id" in caught.value.message
    assert told in caught.value.message
    assert "give OWNER/NAME" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_base_id_stands_in_the_folder(trained, tmp_path):
    options = ExportOptions(out=tmp_path / "out", base_id="me/its-base")
    make_target("adapter").export(str(trained.run), options, SilentReporter())
    settings = read_json(tmp_path / "out" / "adapter_config.json")
    assert settings["base_model_name_or_path"] == "me/its-base"


def test_the_vllm_lines(trained):
    lines = readme_code(trained.out, "sh")
    assert "vllm serve base --tokenizer . --max-model-len 1024" in lines
    assert '--hf-overrides "$(cat hf_overrides.json)"' in lines
    assert "--enable-lora --max-lora-rank 8 --lora-modules run-adapter=." in lines
    found = json.loads((trained.out / "hf_overrides.json").read_text(encoding="utf-8"))
    assert found == json.loads(json.dumps(overrides(trained.table)))
    assert found["max_position_embeddings"] == TARGET
    assert found["rope_parameters"]["rope_theta"] == 10000.0


@pytest.mark.parametrize(("rank", "accepted"), [(4, 8), (16, 16), (33, 64), (400, 512)])
def test_vllm_is_asked_for_a_rank_it_accepts(trained, rank, accepted):
    text = card("x", "o/base", True, trained.table, {"r": rank})
    assert f"--max-lora-rank {accepted} " in text
    assert "base_model: o/base" in text
    assert "put the directory" not in text


def test_the_same_again_is_left_as_it_is(trained):
    before = {p.name: p.stat().st_mtime_ns for p in trained.out.iterdir()}
    reporter = SilentReporter()
    make_target("adapter").export(str(trained.run), ExportOptions(), reporter)
    assert {p.name: p.stat().st_mtime_ns for p in trained.out.iterdir()} == before
    assert reporter.lines == [f"{trained.out} holds this adapter already"]


def test_the_command_and_its_refusals(giraffe, trained, tmp_path):
    done = giraffe("export", trained.run, "--to", "adapter", "--json", "--out", tmp_path / "mine")
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["path"] == str(tmp_path / "mine")
    assert (facts["base"], facts["target_length"]) == ("base", TARGET)
    assert set(facts["checks"]) == {"matrices", "targets", "rope_json", "private_paths"}
    (tmp_path / "other").mkdir()
    done = giraffe("export", trained.run, "--to", "adapter", "--out", tmp_path / "other")
    assert (done.code, done.stdout) == (3, "")
    assert f"{tmp_path / 'other'} exists and holds something else" in done.stderr
    assert list((tmp_path / "other").iterdir()) == []
    done = giraffe("export", trained.base, "--to", "adapter")
    assert done.code == 3
    assert "is no run directory: it has no run.yaml" in done.stderr


def test_a_run_without_training_has_no_adapter(giraffe, tmp_path):
    run = make_run(tmp_path, steps=0).run
    done = giraffe("export", run, "--to", "adapter")
    assert done.code == 3
    assert f"{run} was extended without training: it has no adapter" in done.stderr
    assert f"giraffe export {run} --to gguf" in done.stderr


def test_an_unfinished_training_is_named(giraffe, tmp_path):
    run = make_run(tmp_path).run
    (run / "adapter" / "manifest.json").unlink()
    done = giraffe("export", run, "--to", "adapter")
    assert done.code == 3
    assert "has no finished adapter" in done.stderr


def test_an_adapter_of_another_table_is_refused(giraffe, tmp_path):
    made = make_run(tmp_path)
    write_json(made.run / "rope.json", table_for(made.base, "linear").to_json())
    done = giraffe("export", made.run, "--to", "adapter")
    assert done.code == 3
    assert "was trained with another table" in done.stderr


@pytest.mark.parametrize(
    ("settings", "kind", "reason"),
    [
        ({"use_dora": True}, "A DoRA adapter", r"scales the norms of rows \(DoRA\)"),
        (
            {"modules_to_save": ["norm", "embed_tokens", "norm"]},
            "A LoRA adapter",
            r"holds modules that were trained whole \(embed_tokens, norm\)",
        ),
    ],
)
def test_what_vllm_cannot_load_is_said_in_place_of_its_lines(trained, settings, kind, reason):
    text = card("x", "o/base", True, trained.table, {"r": 4, **settings})
    assert kind in text
    assert re.search(f"vLLM takes plain LoRA alone, and this adapter {reason}", text)
    assert "vllm serve" not in text
    assert "PeftModel.from_pretrained" in text


def test_a_run_that_trained_every_weight_has_no_adapter_to_export(giraffe, tmp_path):
    run = make_run(tmp_path).run
    write_json(run / "adapter" / "trained.json", {"method": "full"})
    done = giraffe("export", run, "--to", "adapter")
    assert (done.code, done.stdout) == (3, "")
    assert "trained every weight (method: full): it has no adapter" in done.stderr
    assert f"giraffe merge {run}" in done.stderr
