"""An evaluation is computed again by a script of transformers alone, and a false figure is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import top_level_names

SCRIPT = Path(__file__).parent.parent / "scripts" / "recompute.py"
CALF = Path(__file__).parent.parent / "giraffe_cli" / "calf"
KNOBS = {"nll.targets": 32, "nll.anchors": 1, "passkey.depths": 2, "passkey.trials": 1}


@pytest.fixture(scope="module")
def evaluated(corpus, tmp_path_factory):
    """calf at 256 and 512 tokens, the native window taken as 256 so that far text is shuffled."""
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.config.evaluate import EvalConfig
    from giraffe_cli.corpus.base import BadRecords
    from giraffe_cli.corpus.sources import read_source
    from giraffe_cli.evals.runner import evaluate
    from giraffe_cli.evals.samples import Texts
    from giraffe_cli.evals.subject import Subject
    from giraffe_cli.progress import SilentReporter

    knobs: dict[str, dict[str, int]] = {}
    for name, value in KNOBS.items():
        task, _, knob = name.partition(".")
        knobs.setdefault(task, {})[knob] = value
    out = tmp_path_factory.mktemp("evaluated")
    evaluate(
        [Subject("checkpoint", CALF, inspect("calf", out / "calf").digest, "float32")],
        EvalConfig(tasks=["nll", "passkey"], knobs=knobs, documents=2),
        lengths=[256, 512],
        native_length=256,
        seed=0,
        texts=Texts(list(read_source(str(corpus), BadRecords()))),
        out=out,
        cache=out / "cache",
        reporter=SilentReporter(),
    )
    return out


def recompute(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), str(CALF), *options]
    return subprocess.run(command, capture_output=True, text=True)


def changed(folder: Path, target: Path, change) -> Path:
    """A copy of the evaluation with `change` applied to each sample."""
    target.mkdir()
    shutil.copy(folder / "prompts.jsonl.gz", target)
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    for sample in samples:
        change(sample)
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    (target / "samples.jsonl").write_text(text, encoding="utf-8")
    return target


def test_it_imports_nothing_of_giraffe():
    names = {name for _, name in top_level_names(SCRIPT)}
    assert names == {"argparse", "gzip", "json", "pathlib", "re", "torch", "transformers"}


def test_losses_and_answers_agree(evaluated):
    done = recompute(evaluated)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # two documents at two lengths and their shuffled controls at 512; 2 keys and 1 control each
    assert (found["nll"], found["passkey"]) == (6, 6)
    assert found["largest_nll_difference"] < 1e-4  # float32 sums in another order
    assert found["other_passkey_scores"] == []


def test_false_figures_are_seen(evaluated, tmp_path):
    def falsify(sample):
        if sample["task"] == "nll" and sample["length"] == 512:
            sample["mean_nll"] += 0.002
        if sample["key"] == "depth 0 trial 0":
            sample["scores"][""] = 1 - sample["scores"][""]

    done = recompute(changed(evaluated, tmp_path / "changed", falsify))
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["largest_nll_difference"] == pytest.approx(0.002, abs=1e-4)
    assert [key for key, *_ in found["other_passkey_scores"]] == ["depth 0 trial 0"] * 2


def test_a_subject_that_was_not_scored_is_no_agreement(evaluated):
    done = recompute(evaluated, "--subject", "base")
    assert done.returncode == 1
    assert f"no nll or passkey samples of base in {evaluated}" in done.stderr
