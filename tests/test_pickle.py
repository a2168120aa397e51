"""Pickled weights: refused, read as tensors alone where that is allowed, never run."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

COMMANDS = {
    "extend": "--model {m} --data {corpus} --target-len 512 --window 64 --steps 0 --no-eval"
    " --rope yarn --out {out}",
    "init": "--model {m} --data {corpus} --target-len 512 --out {out}.yaml",
    "plan": "--model {m} --target-len 512 --device cpu",
    "eval": "{m} --data {corpus} --tasks nll --lengths 64 --set nll.targets=32 --documents 2"
    " --out {out}",
    "generate": "{m} --prompt-file {prompt} --max-new-tokens 1",
    "rope compare": "yarn ntk --model {m} --data {corpus} --target-len 256 --documents 1"
    " --no-needles --minutes 1 --out {out}",
    "rope search": "--model {m} --data {corpus} --target-len 256 --documents 1 --held-out 1"
    " --evaluations 2 --out {out}",
}


class Bomb:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.fixture
def pickled(tiny_llama, tmp_path, monkeypatch):
    """The tiny Llama as `pytorch_model.bin`; whatever the pickle does happens in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "old"
    shutil.copytree(tiny_llama, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def words(pickled, corpus, tmp_path):
    (tmp_path / "prompt.txt").write_text("the grass is green")
    values = {"m": pickled, "corpus": corpus, "out": tmp_path / "out", "prompt": "prompt.txt"}

    def given(command):
        return [*command.split(), *COMMANDS[command].format(**values).split()]

    return given


@pytest.mark.parametrize("command", COMMANDS)
def test_they_are_refused_with_the_option_that_reads_them(giraffe, words, command):
    told = giraffe(*words(command))
    assert told.code == 3
    assert "has only pickled weights (pytorch_model.bin)" in told.stderr
    assert "hint: pass --allow-pickle" in told.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_allow_pickle_reads_them(giraffe, words, tmp_path, command):
    done = giraffe(*words(command), "--allow-pickle")
    assert done.code == 0, done.stderr


@pytest.mark.parametrize("allowed", [[], ["--allow-pickle"]])
def test_no_code_of_a_pickle_runs(giraffe, words, pickled, tmp_path, allowed):
    torch.save({"model.norm.weight": Bomb()}, pickled / "pytorch_model.bin")
    told = giraffe(*words("generate"), *allowed)
    assert told.code == 3
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "ran").exists()


def test_the_tensors_are_those_of_the_pickle(pickled, tiny_llama, tmp_path):
    from giraffe_cli.checkpoint import inspect

    opened = inspect(str(pickled), tmp_path / "work", allow_pickle=True)
    found, expected = (load_file(f / "model.safetensors") for f in (opened.path, tiny_llama))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
