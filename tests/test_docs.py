"""README, CONTRIBUTING and docs/ stay true: commands are real, links and anchors lead somewhere,
configs build, and the reference that is made from the code leaves nothing out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from giraffe_cli.cli.app import COMMANDS
from giraffe_cli.config.building import build
from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.evals.base import tasks
from giraffe_cli.rope.base import strategies

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.M | re.S)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands_in(text: str) -> list[str]:
    """Lines that begin with `giraffe` in blocks, whole inline ones; `...` stands for the rest."""
    found = []
    for _, block in FENCED.findall(text):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        found += [re.sub(r"^(srun )", "", line) for line in lines]
    found += re.findall(r"(?<!`)`(giraffe [^`\n]*)`(?!`)", FENCED.sub("", text))
    found = [re.split(r"\s{2,}[#(]| # | \|\| ", line)[0].strip() for line in found]
    return [line for line in found if re.match(r"giraffe [a-z-]+", line) and "..." not in line]


EVERY_COMMAND = sorted({line for page in PAGES for line in commands_in(text_of(page))})
PLACEHOLDERS = {"FILE", "DIR", "RUN", "SRC", "M", "KEY=VALUE", "CHECKPOINT", "NAME"}


def test_there_are_commands_to_check():
    assert len(EVERY_COMMAND) > 60


@pytest.mark.parametrize("line", EVERY_COMMAND)
def test_every_command_and_option_exists(line, giraffe):
    """`--help` behind the options: the parser refuses unknown ones, and nothing runs."""
    words = shlex.split(line)[1:]
    if words[0].startswith("--"):
        words = [w for w in words if w in ("--version", "--help")] or ["--help"]
    shortened = {"(the", "rope list|show|compare|search"}
    if set(words) & shortened:
        words = words[:1]
    result = giraffe(*words, "--help")
    assert result.code == 0, result.stderr


def slug(heading: str) -> str:
    """The anchor that GitHub, and the pages of mkdocs.yml, give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    plain = re.sub(r"\*\*?|(?<!\w)_|_(?!\w)", "", plain)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = FENCED.sub("", text_of(page))
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.M)}


def test_slugs_are_those_of_github():
    assert slug("SmolLM2-135M, 8k → 16k") == "smollm2-135m-8k--16k"
    assert slug("`--rope auto`") == "--rope-auto"


@each_page
def test_links_and_anchors_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", text_of(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@each_page
def test_files_that_are_named_exist(page):
    named = re.findall(r"`((?:docs|configs|scripts)/[\w./-]*\w)`", text_of(page))
    made = {"docs/results.schema.json"}
    assert [name for name in named if name not in made and not (ROOT / name).exists()] == []


@each_page
def test_configs_build(page):
    for language, block in FENCED.findall(text_of(page)):
        if language == "yaml":
            values = yaml.safe_load(block)
            build({"target_length": "64k", **values} if "stages" not in values else values)


def test_nothing_is_promised_of_several_gpus():
    for name in ("several-gpus", "cluster"):
        text = text_of(ROOT / "docs" / "guides" / f"{name}.md")
        assert '!!! warning "' in text
    assert "This has not run on more than one GPU" in text_of(
        ROOT / "docs" / "guides" / "several-gpus.md"
    )


# ── the site ─────────────────────────────────────────────────────────────────────────────────


def navigation() -> list[str]:
    """Every page that mkdocs.yml names; its `!!python` tags are no concern of this test."""
    return re.findall(r": ([\w./-]+\.md)$", text_of(ROOT / "docs" / "mkdocs.yml"), flags=re.M)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, str]:
    """The generated pages, pictures left out."""
    folder = tmp_path_factory.mktemp("reference")
    scripts = ROOT / "scripts" / "reference_pages"
    code = f"import __main__, runpy; runpy.run_path({str(scripts)!r}, run_name='pages')"
    code += f"['write_pages'](__import__('pathlib').Path({str(folder)!r}))"
    paths = os.pathsep.join([str(scripts), str(ROOT)])
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": paths}
    )
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_the_navigation_names_every_page_once(reference):
    written = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    made = {f"reference/{name}" for name in reference if name.endswith(".md")}
    assert sorted(navigation()) == sorted(written | made)


def test_every_command_and_option_is_in_the_reference(reference, giraffe):
    text = reference["commands.md"]
    for name in COMMANDS:
        assert f"## giraffe {name}" in text
    shown = set(re.findall(r"(--[a-z-]+)", giraffe("extend", "--help").stdout)) - {"--help"}
    section = text.split("## giraffe extend")[1].split("\n## ")[0]
    assert shown <= set(re.findall(r"(--[a-z-]+)", section))


def test_every_knob_strategy_and_task_is_in_the_reference(reference):
    schema = yaml.safe_load(reference["config.schema.json"])
    assert schema == ExtendConfig.model_json_schema()
    knobs = {name for part in schema["$defs"].values() for name in part["properties"]}
    for knob in knobs | set(schema["properties"]):
        assert re.search(rf"`[\w.]*\b{knob}`", reference["config.md"]), knob
    for page, names in (("strategies.md", strategies()), ("tasks.md", tasks())):
        assert all(f"\n## {name}\n" in reference[page] for name in names)


def test_exit_codes_and_errors_are_in_the_reference(reference):
    text = reference["errors.md"]
    codes = re.findall(r"^\| (\d+) \|", text, flags=re.M)
    assert codes == ["0", "1", "2", "3", "4", "5", "130", "143"]
    assert text.count("\n| ") > 150
    assert "already reaches … tokens, the target is …" in text


def test_what_the_reference_links_to_is_there(reference):
    for name, text in reference.items():
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            beside = target in reference or target.startswith("strategy-")
            assert beside or (ROOT / "docs" / "reference" / target).resolve().exists(), (
                f"{name}: {target}"
            )
