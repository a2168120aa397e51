"""`giraffe doctor`: what it finds, what it misses, and the lines that serve a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from giraffe_cli.cli import environment


def test_json_names_versions_devices_memory_and_disk(giraffe):
    result = giraffe("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.code == 0
    assert found["ok"] is True
    assert found["packages"]["torch"]["installed"] == metadata.version("torch")
    assert found["packages"]["transformers"]["needed"].startswith(">=5")
    assert found["cpu"]["cores"] >= 1
    assert isinstance(found["cpu"]["bfloat16"], bool)
    assert 0 < found["memory_bytes"]["free"] <= found["memory_bytes"]["total"]
    assert 0 < found["disk"]["free_bytes"] <= found["disk"]["total_bytes"]
    assert "gguf" in found["extras"]
    assert "dev" not in found["extras"]


def test_the_table_shows_each_package_and_the_next_command(giraffe):
    result = giraffe("doctor")
    assert result.code == 0
    assert f"│ {metadata.version('peft')} " in result.stdout
    assert "ready: giraffe extend --target-len 16k" in result.stdout


@pytest.fixture
def without(monkeypatch):
    """Pretend that distributions have other versions; None: not installed."""

    def pretend(**versions: str | None) -> None:
        real = environment.installed
        monkeypatch.setattr(environment, "installed", lambda n: versions.get(n, "") or _real(n))

        def _real(name: str) -> str | None:
            return None if name in versions else real(name)

    return pretend


def test_a_missing_extra_comes_with_its_pip_line(giraffe, without):
    without(gguf=None)
    result = giraffe("doctor", "--json")
    extra = json.loads(result.stdout)["extras"]["gguf"]
    assert result.code == 0
    assert extra == {
        "installed": {},
        "missing": ["gguf>=0.19"],
        "install": "pip install 'gguf>=0.19'",
    }


def test_a_package_that_is_too_old_ends_with_1_and_the_command(giraffe, without):
    without(transformers="4.57.1")
    result = giraffe("doctor")
    assert result.code == 1
    assert "problem: transformers 4.57.1, needs >=5.17: pip install 'transformers>=5.17'" in (
        result.stdout
    )
    assert "ready:" not in result.stdout


def test_without_torch_doctor_still_answers(giraffe, without):
    without(torch=None)
    result = giraffe("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.code == 1
    assert found["problems"] == ["torch missing, needs >=2.11: pip install 'torch>=2.11'"]
    assert found["devices"] == []


def test_a_checkpoint_adds_its_serve_lines(giraffe, tiny_llama):
    result = giraffe("doctor", tiny_llama)
    assert result.code == 0
    assert f"vllm serve {tiny_llama} --max-model-len 128" in result.stdout
    assert f"llama-server -m {tiny_llama}.gguf -c 128" in result.stdout


@pytest.fixture
def served(tiny_llama, tmp_path):
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "served"))


def serve_checks(giraffe, folder, code):
    result = giraffe("doctor", folder, "--json")
    assert result.code == code, result.stderr
    return json.loads(result.stdout)["serve_checks"]


def test_an_attention_factor_of_yarns_own_needs_a_vllm_that_reads_it(giraffe, served):
    config = json.loads((served / "config.json").read_text())
    fields = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    fields |= {"attention_factor": 1.0, "rope_theta": 1e4}
    (served / "config.json").write_text(json.dumps({**config, "rope_parameters": fields}))
    told = serve_checks(giraffe, served, 3)["vllm"]  # other checks go by what was trained
    assert (told["ok"], told["found"]) == (True, "exact from vLLM 0.33 on")


def test_one_table_for_all_lengths_is_not_what_transformers_makes_of_dynamic(giraffe, served):
    config = json.loads((served / "config.json").read_text())
    fields = {"rope_type": "dynamic", "factor": 4.0}
    config |= {"rope_theta": 1e4, "rope_scaling": fields, "rope_parameters": None}
    (served / "config.json").write_text(json.dumps(config))
    assert serve_checks(giraffe, served, 3)["vllm"]["found"] == "one table for all lengths"


def test_serve_lines_are_held_against_the_directory(giraffe, served):
    result = giraffe("doctor", served)
    assert result.code == 0
    assert "✓ weights: " in result.stdout
    assert "✓ vllm: exact" in result.stdout
    assert "✓ gguf: not exported yet" in result.stdout
    assert giraffe("export", served, "--to", "gguf", "--out", f"{served}.gguf").code == 0
    found = serve_checks(giraffe, served, 0)["gguf"]["found"]
    assert "rope_freqs, attn_factor, context_length as in the directory" in found


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def test_a_line_that_does_not_fit_is_named(giraffe, served):
    assert giraffe("export", served, "--to", "gguf", "--out", f"{served}.gguf").code == 0
    change(served / "tokenizer_config.json", model_max_length=64)
    change(served / "config.json", max_position_embeddings=512)
    result = giraffe("doctor", served)
    assert result.code == 3
    assert "✗ tokenizer: model_max_length 64, needs no limit below 512" in result.stdout
    assert "✗ gguf: context_length 128, needs the table and window" in result.stdout


def test_a_table_that_the_file_for_llama_cpp_lacks_is_named(giraffe, served):
    assert giraffe("export", served, "--to", "gguf", "--out", f"{served}.gguf").code == 0
    change(served / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    found = serve_checks(giraffe, served, 3)["gguf"]
    assert found["found"].startswith("rope_freqs ")
    assert found["hint"] == (
        f"rm {served}.gguf && giraffe export {served} --to gguf --out {served}.gguf"
    )


def test_a_file_older_than_the_weights_and_lost_weights_are_named(giraffe, served):
    assert giraffe("export", served, "--to", "gguf", "--out", f"{served}.gguf").code == 0
    os.utime(f"{served}.gguf", (1, 1))
    assert "older than the weights" in serve_checks(giraffe, served, 3)["gguf"]["found"]
    assert giraffe("export", served, "--to", "gguf", "--out", f"{served}.gguf").code == 0
    assert serve_checks(giraffe, served, 0)["gguf"]["ok"]  # found equal, and said so
    (served / "model.safetensors").unlink()
    assert not serve_checks(giraffe, served, 3)["weights"]["ok"]


def test_a_run_folder_stands_for_the_model_inside(giraffe, tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"max_position_embeddings": 2048}')
    (tmp_path / "run" / "report.json").write_text('{"model": "calf"}')
    serve = json.loads(giraffe("doctor", tmp_path / "run", "--json").stdout)["serve"]
    assert serve[0] == f"vllm serve {model} --max-model-len 2048"
    assert serve[1].startswith(f"giraffe export {model} --to gguf")


@pytest.mark.parametrize("command", ["doctor", "verify"])
def test_a_run_whose_model_is_gone_says_what_writes_it(giraffe, tmp_path, command):
    run = tmp_path / "a run"
    run.mkdir()
    (run / "run.yaml").touch()
    done = giraffe(command, run)
    assert done.code == 3
    assert f"hint: giraffe merge '{run}' writes the model" in " ".join(done.stderr.split())


def test_a_folder_without_a_checkpoint_is_refused(giraffe, tmp_path):
    result = giraffe("doctor", tmp_path)
    assert result.code == 3
    assert "holds no config.json" in result.stderr


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_files_that_hold_no_object_are_told(giraffe, tiny_llama, tmp_path, name):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / name).write_text("[]")
    done = giraffe("doctor", folder)
    assert done.code == 3
    assert f"{name} holds no JSON object" in done.stdout + done.stderr


def test_a_limit_in_quotation_marks_is_told(giraffe, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    change(folder / "tokenizer_config.json", model_max_length="512")
    done = giraffe("doctor", folder)
    assert done.code == 3
    assert "tokenizer: model_max_length '512', needs no limit below 128" in done.stdout
    done = giraffe("export", folder, "--to", "gguf", "--out", tmp_path / "m.gguf")
    assert done.code == 3
    assert "says model_max_length '512', needs a number" in done.stderr


def test_a_command_lets_torch_keep_few_shapes_unless_told_otherwise(giraffe, monkeypatch):
    """In 16 bits on a CPU every document length would stay in memory, up to 1,024 of a product."""
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    assert giraffe("rope", "list").code == 0
    found = [os.environ[name] for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")]
    assert found == ["64", "7"]
