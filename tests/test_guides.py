"""The guides' commands run in their order, on the tiny model with lengths a thirty-second as long.

What needs a hub, a GPU, Slurm, a large model's weights, or two nodes at once (tests/test_nodes.py)
is parsed by tests/test_docs.py alone; the plans among it run here too, as they need no weights.
"""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
from pathlib import Path

import pytest
from books import write_book, write_pdf
from conftest import prose
from test_docs import FENCED, ROOT, commands_in, text_of

GUIDES = ("extend", "corpus", "no-gpu", "one-gpu", "several-gpus", "cluster", "serve", "report")
NEEDS_MORE = re.compile(
    r"meta-llama/|models/llama3-8b|extend --config configs/(?:clusters/)?(?:llama|eight)"
    r"|--executor|--install-completion|--nodes"
)
LENGTHS = {"16k": "512", "8k": "128", "2k": "64", "8k,16k": "128,512"}
SMALL = [
    *("--set", "train.warmup_steps=0", "--set", "pack.hold_out=0.3"),
    *("--set", "eval.lengths=[128,512]", "--set", "eval.documents=2", "--set", "eval.tasks=[nll]"),
    *("--set", "eval.knobs={nll: {anchors: 1, targets: 32}}"),
]
EXTRAS = {
    "eval": ["--tasks", "nll", "--documents", "2", "--set", "nll.targets=32"],
    "rope": ["--documents", "2", "--no-needles"],
}


def runnable(guide: str) -> list[str]:
    """Commands of its plain blocks; inline ones and scripts of other languages only name things."""
    text = text_of(ROOT / "docs" / "guides" / f"{guide}.md")
    blocks = [block for language, block in FENCED.findall(text) if not language]
    shown = {line for block in blocks for line in block.splitlines()}
    return [line for line in commands_in(text) if line in shown and not NEEDS_MORE.search(line)]


@pytest.fixture
def workplace(tiny_llama, corpus, tmp_path, monkeypatch) -> Path:
    """A folder where the names that the guides use stand for the tiny model and corpus."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "smollm2-135m").symlink_to(tiny_llama)
    (tmp_path / "models" / "my-finetune").symlink_to(tiny_llama)
    for name in ("books.jsonl.gz", "validation.jsonl.gz"):
        (tmp_path / name).write_bytes(gzip.compress(corpus.read_bytes()))
    (tmp_path / "corpus.jsonl").write_bytes(corpus.read_bytes())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "today.md").write_text(prose(2, 8))
    write_book(tmp_path / "shelf" / "emma.epub", prose(3, 160))
    write_pdf(tmp_path / "papers" / "one.pdf", prose(4, 60).replace(". ", ".\n"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "run.yaml").write_text(
        "model: models/smollm2-135m\ndata: [books.jsonl.gz]\ntarget_length: 512\n"
        "train: {window: 64}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scaled(line: str) -> list[str]:
    """The line's arguments at the tiny model's scale; plans of large shapes stay as they are."""
    words = shlex.split(line)[1:]
    if words[0] == "plan" and "--shape" in words:
        return words
    words = [LENGTHS.get(word, word).replace("smollm2-135m-16k", "smollm2-135m-512")
             for word in words]  # fmt: skip
    if words[0] == "extend" and "--dry-run" not in words:
        steps = [] if "--steps" in words else ["--steps", "1"]
        words = [*words, *steps, *SMALL]
    if words[0] in ("eval", "rope"):
        words += EXTRAS[words[0]]
    return [*words, "--json"]


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_the_commands_of_a_guide_run_in_their_order(guide, workplace, giraffe):
    lines = runnable(guide)
    assert lines
    if guide in ("serve", "report"):  # of a run that another guide makes
        extend = "giraffe extend --model models/smollm2-135m --data books.jsonl.gz --target-len 16k"
        lines = [f"{extend} --window 2k", *lines]
    if guide == "report":
        lines[1:1] = [f"giraffe extend --config run.yaml --rope {n} --out runs/{n}"
                      for n in ("yarn", "ntk")]  # fmt: skip
    for line in lines:
        result = giraffe(*scaled(line))
        assert result.code in ((0, 5) if "--gate" in line else (0,)), f"{line}\n{result.stderr}"


def test_every_guide_has_commands_that_run():
    assert all(runnable(guide) for guide in GUIDES)
    pages = {path.stem for path in (ROOT / "docs" / "guides").glob("*.md")}
    assert pages == {*GUIDES, "completion"}


def test_lengths_are_scaled_and_large_plans_are_not():
    assert scaled("giraffe plan --shape llama3-8b --target-len 16k")[-1] == "16k"
    assert "512" in scaled("giraffe pack-data x --tokenizer t --window 16k --out o")
