"""The lines that serve a checkpoint, and what they say where a runtime would change its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_report import YARN

from giraffe_cli.errors import InvalidInput
from giraffe_cli.report.serve import gguf_path, serve_lines
from giraffe_cli.report.serve_check import check_serving
from giraffe_cli.rope.readings import ORIGINAL


def lines_for(tmp_path: Path, rope: dict) -> list[str]:
    config = {"max_position_embeddings": 16384, "rope_parameters": rope, "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return [line.replace(str(tmp_path), "DIR") for line in serve_lines(tmp_path)]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 4e5},
        {"rope_type": "llama3", "factor": 8.0},
        {**YARN, "attention_factor": 1.0},
        {"rope_type": "longrope", "long_mscale": 1.0},
    ],
)
def test_a_table_that_stays_gets_all_lines(tmp_path, rope):
    assert lines_for(tmp_path, rope) == [
        "vllm serve DIR --max-model-len 16384",
        "giraffe export DIR --to gguf --out DIR.gguf",
        "llama-server -m DIR.gguf -c 16384",
    ]


def test_no_llama_cpp_line_is_printed_for_a_table_that_changes(tmp_path):
    vllm, llama_cpp = lines_for(tmp_path, {"rope_type": "dynamic", "factor": 4.0})
    assert vllm == "vllm serve DIR --max-model-len 65536"
    assert llama_cpp.startswith("# llama.cpp: not served, dynamic here changes its table")


@pytest.mark.parametrize("bias", ["attention_bias", "mlp_bias"])
def test_no_export_is_printed_that_would_be_refused(tmp_path, bias):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 64, bias: True}))
    _, llama_cpp = serve_lines(tmp_path)
    assert llama_cpp.startswith("# llama.cpp: not served, giraffe export writes no biases")
    assert check_serving(tmp_path)["gguf"]["found"] == "none: biases are not exported"


def test_linear_warns_that_vllm_multiplies_the_length(tmp_path):
    caution, vllm, *llama_cpp = lines_for(
        tmp_path, {"rope_type": "linear", "factor": 16.0, ORIGINAL: 1024}
    )
    assert caution.startswith("# vLLM multiplies")
    assert vllm == "vllm serve DIR --max-model-len 16384"
    assert len(llama_cpp) == 2


def test_linear_of_others_names_the_native_window_beside_its_factor(tmp_path):
    assert lines_for(tmp_path, {"rope_type": "linear", "factor": 2.0}) == [
        "vllm serve DIR --max-model-len 32768",
        "giraffe export DIR --to gguf --out DIR.gguf",
        "llama-server -m DIR.gguf -c 32768",
    ]


def test_a_folder_named_by_a_dot_gets_its_file_beside_it(tmp_path, monkeypatch):
    """`..gguf` would be a hidden file inside the model, at which verify stops."""
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert gguf_path(Path()) == gguf_path(tmp_path / "model") == tmp_path / "model.gguf"
    assert gguf_path(Path("model")) == Path("model.gguf")


def test_longrope_without_its_vllm_keys_is_named(tmp_path):
    assert "long_mscale is missing" in lines_for(tmp_path, {"rope_type": "longrope"})[0]


def test_a_directory_without_a_usable_length_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 16384.0}')
    with pytest.raises(InvalidInput, match="needs an integer"):
        serve_lines(tmp_path)
