"""What an import costs: `giraffe --help` needs no torch, and importing anything does no work."""

from __future__ import annotations

import json
import subprocess
import sys

from test_layers import PACKAGE, ROOT, level_of, modules

HEAVY = ["torch", "transformers", "datasets", "matplotlib", "pandas", "peft", "accelerate"]


def loaded_by(names: list[str]) -> list[str]:
    """Heavy packages in `sys.modules` of a fresh interpreter that imported `names`."""
    code = (
        "import importlib, json, logging, sys\n"
        # PEFT imports bitsandbytes, which asks aloud for a kernel; the command line does the same
        "logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
        f"sys.stderr.write(json.dumps([h for h in {HEAVY!r} if h in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return json.loads(done.stderr)


def full_name(module: str) -> str:
    return f"{PACKAGE}.{module}".removesuffix(".")


def test_the_command_line_starts_without_heavy_packages():
    """`app` imports a command when it is asked for; `--help` imports them all."""
    commands = [full_name(m) for m in modules(ROOT) if m.startswith("cli.")]
    assert len(commands) > 8
    assert loaded_by(commands) == []


def test_levels_below_three_load_no_torch():
    low = [full_name(m) for m in modules(ROOT) if (level_of(m) or 0) < 3]
    assert {"torch", "transformers"}.isdisjoint(loaded_by(low))


def test_every_module_imports_and_says_nothing():
    everything = [full_name(m) for m in modules(ROOT) if not m.endswith("__main__")]
    assert "torch" in loaded_by(everything)
