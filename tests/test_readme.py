"""README stays true: its commands run in their order, its claims have figures, its map is whole."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import prose

from giraffe_cli.rope.base import strategies

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```$", README, flags=re.M | re.S)
CODE_MAP = (ROOT / "docs" / "code-map.md").read_text(encoding="utf-8")
(MAP,) = re.findall(r"^```\n(.*?)^```$", CODE_MAP, flags=re.M | re.S)
COMMANDS = [
    line
    for block in BLOCKS
    for line in block.splitlines()
    if re.match(r"giraffe |\./scripts", line)
]


def entries(block: str) -> dict[str, str]:
    """`path  phrase` lines of the map."""
    return dict(line.split(maxsplit=1) for line in block.splitlines())


def files(root: Path) -> set[str]:
    """Files a reader meets; `__init__.py` counts when it holds more than a docstring."""
    found = [p for top in ("giraffe_cli", "scripts") for p in (root / top).rglob("*")]
    return {
        path.relative_to(root).as_posix()
        for path in found
        if path.is_file()
        and "__pycache__" not in path.parts
        and not (path.name == "__init__.py" and path.read_text().count("\n") <= 1)
    }


def differences(listed: set[str], present: set[str]) -> list[str]:
    """What the map lacks and what it names in vain; `a/` covers every file directly or below."""
    folders = tuple(name for name in listed if name.endswith("/"))
    missing = [p for p in present if p not in listed and not p.startswith(folders or ("\0",))]
    stale = [
        name
        for name in listed
        if name not in present and not any(p.startswith(name) for p in present if name[-1] == "/")
    ]
    return sorted(f"missing: {p}" for p in missing) + sorted(f"stale: {p}" for p in stale)


def test_the_file_map_is_complete_and_current():
    assert differences(set(entries(MAP)), files(ROOT)) == []


def test_the_map_folds_plugin_and_data_folders_alone():
    assert {name for name in entries(MAP) if name.endswith("/")} == {
        "giraffe_cli/rope/strategies/",
        "giraffe_cli/rope/positions/",
        "giraffe_cli/corpus/readers/",
        "giraffe_cli/corpus/executors/",
        "giraffe_cli/evals/tasks/",
        "giraffe_cli/export/targets/",
        "giraffe_cli/calf/",
    }


def test_a_missing_and_a_stale_file_are_named():
    present = {"giraffe_cli/a.py", "giraffe_cli/b.py", "giraffe_cli/plugins/x.py"}
    listed = {"giraffe_cli/a.py", "giraffe_cli/c.py", "giraffe_cli/plugins/", "giraffe_cli/old/"}
    assert differences(listed, present) == [
        "missing: giraffe_cli/b.py",
        "stale: giraffe_cli/c.py",
        "stale: giraffe_cli/old/",
    ]


def test_exactly_two_commands_come_first():
    assert BLOCKS[0].splitlines() == ["./scripts/demo", "./scripts/test"]
    for command in BLOCKS[0].splitlines():
        assert (ROOT / command).stat().st_mode & 0o111, f"{command} is not executable"


def test_every_file_the_readme_names_exists():
    named = re.findall(r"`(?:\./)?((?:docs|scripts|configs|giraffe_cli)/[\w./-]*)`", README)
    named += re.findall(r"--config (\S+)", README)
    made = {"giraffe.yaml"}  # by `giraffe init`, a line above
    assert [name for name in named if name not in made and not (ROOT / name).exists()] == []


def test_every_claim_has_its_figure():
    """Each sentence about what was shown links to a heading of results or benchmarks."""
    shown = README.split("## What has been shown")[1].split("\n## ")[0]
    claims = [line for line in shown.splitlines() if line.startswith("- ")]
    assert len(claims) >= 8
    for claim in claims:
        assert re.search(r"\]\(docs/(results|benchmarks)\.md#[\w-]+\)", claim), claim


def test_a_preset_that_is_said_to_be_measured_says_so_itself():
    table = README.split("## What do I choose?")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if ".yaml`" in line]
    assert len(rows) >= 4
    for row in rows:
        preset = ROOT / re.search(r"`(configs/[\w./-]+\.yaml)`", row)[1]
        unmeasured = "# Measured: not measured yet" in preset.read_text(encoding="utf-8")
        assert ("not yet" in row) == unmeasured or "in part" in row, row


def test_the_strategies_are_counted_right():
    (count,) = re.findall(r"RoPE strategies to choose from \| (\d+) ", README)
    assert int(count) == len(strategies())


def test_an_unknown_option_would_be_refused(giraffe):
    assert giraffe("extend", "--target-length", "16k", "--help").code == 2


SUBSTITUTES = {
    "--target-len": "512",
    "--window": "128",
    "--lengths": "128,512",
    "--evaluations": "14",
}


@pytest.fixture(scope="module")
def workplace(tiny_llama, corpus, tmp_path_factory) -> Path:
    """A folder where the names README uses stand for the tiny model and corpus."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").mkdir()
    (folder / "models" / "smollm2-135m").symlink_to(tiny_llama)
    lines = corpus.read_text(encoding="utf-8")
    (folder / "books.jsonl").write_text(lines, encoding="utf-8")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.md").write_text(json.loads(lines.splitlines()[1])["text"])
    (folder / "notes" / "today.md").write_text(prose(2, 8))
    shutil.copytree(ROOT / "configs", folder / "configs")
    return folder


def substituted(line: str) -> list[str]:
    """The line's arguments at the tiny model's scale."""
    words = [word.replace("books.jsonl.gz", "books.jsonl") for word in shlex.split(line)[1:]]
    for option, value in SUBSTITUTES.items():
        if option in words:
            words[words.index(option) + 1] = value
    extras = {
        "extend": [
            *("--steps", "1", "--out", "runs/smollm2-135m-16k", "--set", "pack.hold_out=0.3"),
            *("--set", "eval.lengths=[128,512]", "--set", "eval.documents=2"),
            *("--set", "eval.knobs={nll: {anchors: 1, targets: 32}}", "--set", "eval.tasks=[nll]"),
        ],
        "eval": ["--tasks", "nll", "--documents", "2"],
        "rope": ["--documents", "2"],
    }
    if "--config" in words:
        words += ["--model", "models/smollm2-135m", "--window", "128", "--target-len", "512"]
    return [*words, *extras.get(words[0], []), "--json"]


def test_the_commands_of_daily_use_run_in_the_order_they_stand(workplace, giraffe, monkeypatch):
    monkeypatch.chdir(workplace)
    lines = [line for line in COMMANDS if line.startswith("giraffe ")]
    names = [shlex.split(line)[1] for line in lines]
    daily = ["extend", "eval", "generate"]
    assert names == [*daily, "init", "extend", "plan", "pack-data", "rope"]
    for line in lines:
        result = giraffe(*substituted(line))
        assert result.code == 0, f"{line}\n{result.stderr}"
        assert isinstance(json.loads(result.stdout), dict)


@pytest.mark.parametrize("command", ["rope list", "doctor"])
def test_the_cheap_commands_run(command, giraffe):
    result = giraffe(*command.split(), "--json")
    assert result.code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)
