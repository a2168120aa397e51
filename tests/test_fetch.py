"""`scripts/fetch_smollm2.py` where something is missing: said before anything is downloaded."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_script

SCRIPT = Path(__file__).parent.parent / "scripts" / "fetch_smollm2.py"


def test_a_python_without_giraffe_is_told_which_to_take(tmp_path):
    bare = [sys.executable, "-I", "-S", SCRIPT, "--out", tmp_path / "model"]
    done = subprocess.run([*map(str, bare)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no package `giraffe_cli`\n\nhint: " in done.stderr
    assert f".venv/bin/python {SCRIPT}, or `source " in done.stderr
    assert "Traceback" not in done.stderr


def test_gguf_is_asked_for_before_the_download(tmp_path, monkeypatch):
    script, find = load_script("fetch_smollm2"), importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name)
    )
    monkeypatch.setattr(script, "download", lambda folder: pytest.fail("downloads first"))
    with pytest.raises(SystemExit, match="-m pip install gguf"):
        script.fetch(tmp_path / "models" / "smollm2", "bfloat16")
    assert not list(tmp_path.iterdir())
