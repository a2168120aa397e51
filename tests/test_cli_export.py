"""`giraffe export` as people run it: exit codes, streams, exact words."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
from tiny_runs import TARGET, make_base, merge

from giraffe_cli.config.files import write_sealed_yaml


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory as far as export reads it: run.yaml and model/."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    base = make_base(folder.parent / "base")
    merge(base, None, folder / "model")
    write_sealed_yaml(folder / "run.yaml", {"model": str(base)})
    return folder


def test_a_run_in_words(giraffe, run):
    done = giraffe("export", run, "--to", "gguf", "--dtype", "f16")
    assert done.code == 0, done.stderr
    out = run / "mine-f16.gguf"
    assert done.stdout.splitlines() == [
        f"gguf: {out} (f16, {out.stat().st_size / 1000:.1f} kB, 21 tensors)",
        "window: 1024 tokens, table: rope_freqs.weight, attention factor 1.20794",
        "read back: 6 checks",
        f"serve it: llama-server -m {out} -c 1024",
    ]
    assert "reading mine-f16.gguf back" in done.stderr


def test_json_is_one_object_with_the_promised_keys(giraffe, run, tmp_path):
    out = tmp_path / "x.gguf"
    done = giraffe("export", run / "model", "--to", "gguf", "--out", out, "--json")
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert {k: facts[k] for k in ("path", "dtype", "tensors", "context_length", "rope_freqs")} == {
        "path": str(out),
        "dtype": "f32",
        "tensors": 21,
        "context_length": TARGET,
        "rope_freqs": True,
    }
    assert facts["bytes"] == out.stat().st_size
    assert facts["attention_factor"] == pytest.approx(1.2079441541679836)
    assert set(facts["checks"]) == {
        "tensors",
        "fields",
        "rope_freqs",
        "attn_factor",
        "stock_table",
        "weights",
    }
    assert all(check["ok"] for check in facts["checks"].values())


def test_a_model_inside_a_run_is_named_after_the_run(giraffe, run):
    done = giraffe("export", run / "model", "--to", "gguf", "--json")
    assert json.loads(done.stdout)["path"] == str(run / "mine-f32.gguf")


def test_the_embedded_model_is_written_here(giraffe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = giraffe("export", "calf", "--to", "gguf", "--json")
    assert done.code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["path"], facts["dtype"], facts["context_length"]) == (
        "calf-bf16.gguf",
        "bf16",
        1024,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--to", "ggml"), 2, "--to ggml: no such choice"),
        (("--to", "ggml"), 2, "known: adapter, gguf"),
        (("--to", "gguf", "--dtype", "q4_0"), 2, "known: bf16, f16, f32, q8_0"),
        (("--to", "gguf", "--base-id", "a/b"), 2, "--base-id has no effect on --to gguf"),
        (("--to", "adapter", "--dtype", "f16"), 2, "--dtype has no effect on --to adapter"),
        ((), 2, "--to"),
    ],
)
def test_refusals(giraffe, run, arguments, code, words):
    done = giraffe("export", run, *arguments)
    assert (done.code, done.stdout) == (code, "")
    assert words in done.stderr


def test_what_is_no_checkpoint(giraffe, tmp_path):
    done = giraffe("export", tmp_path, "--to", "gguf")
    assert done.code == 3
    assert "is neither a model nor a run" in done.stderr
    done = giraffe("export", tmp_path / "x.gguf", "--to", "gguf")
    assert done.code == 3
    assert "is a GGUF file already" in done.stderr


def test_a_run_whose_model_is_gone(giraffe, run, tmp_path):
    shutil.copy(run / "run.yaml", tmp_path)
    done = giraffe("export", tmp_path, "--to", "gguf")
    assert done.code == 3
    assert "has no finished model" in done.stderr
    assert f"run giraffe merge {tmp_path}" in done.stderr


def test_a_missing_extra_is_named_with_its_command(giraffe, run, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "gguf" else real(name, *a)
    )
    done = giraffe("export", run, "--to", "gguf")
    assert done.code == 3
    assert "writing GGUF needs the `gguf` package" in done.stderr
    assert "pip install 'giraffe-cli[gguf]'" in done.stderr
