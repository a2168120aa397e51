"""Shell completion through typer's own protocol; names come from the registries."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from giraffe_cli.cli import complete
from giraffe_cli.evals.base import tasks
from giraffe_cli.plan.machine import DEVICES
from giraffe_cli.rope.base import strategies

ROOT = Path(__file__).parent.parent


@pytest.fixture
def offered(giraffe, monkeypatch, tmp_path):
    """What bash is offered for the last word of a line, in an empty folder."""

    def ask(line: str) -> list[str]:
        monkeypatch.setenv("_GIRAFFE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        result = giraffe()
        assert result.code == 0, result.stderr
        return result.stdout.split()

    return ask


def test_commands_and_options(offered):
    assert offered("giraffe ver") == ["verify"]
    assert "--target-len" in offered("giraffe extend --tar")
    assert set(offered("giraffe rope ")) == {"list", "show", "compare", "search"}


@pytest.mark.parametrize("command", ["rope compare", "rope show"])
def test_strategies_behind_commands(command, offered):
    assert set(strategies()) <= set(offered(f"giraffe {command} "))


def test_strategies_behind_rope(offered):
    assert set(offered("giraffe extend --rope ")) == {"auto", *strategies()}
    assert offered("giraffe extend --rope ya") == ["yarn", "yarn-revised"]


def test_tasks_one_after_another(offered):
    assert set(offered("giraffe eval model --tasks ")) == set(tasks())
    assert offered("giraffe eval model --tasks nll,pass") == ["nll,passkey"]
    assert "nll,nll" not in offered("giraffe eval model --tasks nll,")


def test_named_machines_and_shapes(offered):
    assert set(offered("giraffe plan --device ")) == set(DEVICES)
    assert offered("giraffe plan --shape smollm2-13") == ["smollm2-135m"]
    assert "h100" in offered("giraffe init --device h")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("giraffe eval model --suite ", {"quick", "standard", "full"}),
        ("giraffe export model --to ", {"gguf", "adapter"}),
        ("giraffe pack-data x --executor ", {"local", "slurm", "ray"}),
        ("giraffe generate model --kv-dtype int", {"int8", "int4"}),
        ("giraffe extend --on-existing-rope c", {"compose"}),
        ("giraffe rope search --dtype b", {"bfloat16"}),
    ],
)
def test_fixed_values(line, found, offered):
    assert set(offered(line)) == found


def test_configs_are_files_folders_and_presets(offered, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert {"calf-16k", "configs/"} <= {*offered("giraffe extend --config ")}
    assert "configs/recipes/" in offered("giraffe extend --config configs/r")
    assert all(name.endswith((".yaml", "/")) for name in offered("giraffe extend --config co"))
    assert len(offered("giraffe extend --config conf")) > 1
    assert complete.configs("/etc/") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_lines_for_a_shell_name_the_protocol(shell, giraffe, monkeypatch):
    monkeypatch.setenv("_GIRAFFE_COMPLETE", f"source_{shell}")
    result = giraffe()
    assert result.code == 0
    assert f"_GIRAFFE_COMPLETE=complete_{shell}" in result.stdout


def test_completing_a_command_imports_that_command_alone():
    """A process of its own, as a shell starts it, with zsh's variables."""
    code = (
        "import sys; sys.argv = ['giraffe']; from giraffe_cli.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'giraffe_cli.cli.evaluate') if m in sys.modules])"
    )
    line = {"_GIRAFFE_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "giraffe extend --rope y"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **line, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"yarn"' in done.stdout
    assert done.stdout.endswith("[]\n")
