"""What calf learns look-ups from, and the script that trains it: tiny, on text of this test."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import load_script
from transformers import PreTrainedTokenizerFast

import giraffe_cli

ROOT = Path(__file__).parent.parent
CALF = Path(giraffe_cli.__file__).parent / "calf"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/calf_lookups.py`."""
    return load_script("calf_lookups")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(CALF)


def text(count: int = 30_000, seed: int = 0) -> str:
    """Sentences of made-up words, no two alike."""
    drawn = random.Random(seed)
    words = ["".join(drawn.choices("abcdefghiklmnoprstuvw", k=5)) for _ in range(600)]
    return " ".join(
        " ".join(drawn.choices(words, k=9)).capitalize() + "." for _ in range(count // 50)
    )


@pytest.fixture(scope="module")
def lookups(script, tokenizer):
    return script.Lookups(tokenizer, np.array(tokenizer(text())["input_ids"], np.uint16))


def answers(script, ids, weights) -> Iterator[tuple[int, list[int]]]:
    """(position, token ids) of every answer."""
    marked = np.concatenate([[0], (weights == script.ANSWER).astype(int), [0]])
    for begin, end in np.flatnonzero(np.diff(marked)).reshape(-1, 2):
        yield int(begin), ids[begin:end].tolist()


@pytest.mark.parametrize("length", [128, 256, 1024])
@pytest.mark.parametrize("kind", ["repeat", "pairs", "dense", "hidden"])
def test_every_answer_stands_earlier_in_its_window(script, lookups, tokenizer, kind, length):
    asked = 0
    for seed in range(8):
        ids, weights = lookups.window(np.random.default_rng(seed), length, [kind])
        assert ids.shape == weights.shape == (length,)
        for place, answer in answers(script, ids, weights):
            if kind in ("repeat", "pairs"):
                assert set(answer) <= set(ids[:place].tolist())
            else:
                before = tokenizer.decode(ids[:place])
                assert tokenizer.decode(answer).strip() in before, (before, answer)
            asked += 1
    assert asked >= 5


def test_a_window_is_a_function_of_its_generator(lookups):
    one, again = (lookups.window(np.random.default_rng(3), 300, ["dense"]) for _ in range(2))
    other = lookups.window(np.random.default_rng(4), 300, ["dense"])
    assert (one[0] == again[0]).all()
    assert (one[1] == again[1]).all()
    assert (one[0] != other[0]).any()


TEMPLATES = ("pass key", "special magic", "register_content", "corresponding value", "quiz you")


def test_no_form_is_that_of_an_evaluation(lookups, tokenizer):
    for seed in range(60):
        ids, _ = lookups.window(np.random.default_rng(seed), 512, ["dense", "hidden"])
        found = tokenizer.decode(ids).lower()
        assert not [words for words in TEMPLATES if words in found]


def test_forms_differ_from_text_to_text(script, lookups):
    forms = [script.Form(np.random.default_rng(n), lookups.vocabulary, 8) for n in range(200)]
    facts = {form.fact("KEY", "VALUE") for form in forms}
    assert len(facts) > 190
    assert sum(form.between == form.ask_between for form in forms) < 150
    assert all("KEY" in fact and "VALUE" in fact for fact in facts)


# ── the training script ──────────────────────────────────────────────────────────────────────

SMALL = (
    "--vocab-size 400 --hidden 32 --intermediate 48 --layers 1 --heads 2 --kv-heads 1 "
    "--head-dim 16 --batch-tokens 512 --warmup-steps 1 --threads 1"
).split()


def run(work: Path, *options: str) -> dict:
    """The script's run; its `training.json`."""
    data = work.parent / "corpus.jsonl"
    if not data.exists():
        rows = [{"id": f"made/{n}", "text": text(12_000, n)} for n in range(60)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(ROOT / "scripts/train_calf.py"), "--data", str(data)]
    out = work / "out"
    command += ["--work", str(work), "--out", str(out), *SMALL, *options]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    record = out / "training.json"
    return json.loads(record.read_text()) if record.exists() else {}


def losses(record: dict) -> list[tuple[int, float]]:
    return sorted({(entry["step"], entry["loss"]) for entry in record["log"]})


@pytest.mark.slow
def test_it_trains_on_text_then_on_look_ups_and_resumes(tmp_path):
    work = tmp_path / "work"
    run(work, "--steps", "2", "--log-every", "2", "--growth", "0:128")
    (work / "out").rename(tmp_path / "text")
    more = ["--run", "lookups", "--init", str(tmp_path / "text"), "--lookups", "0.5"]
    more += ["--steps", "4", "--growth", "0:128,0.5:256", "--log-every"]
    whole = run(work, *more, "2")
    assert [entry["window"] for entry in whole["log"][:2]] == [128, 256]
    assert set(whole["log"][0]["answered"]) == {"repeat", "pairs", "dense", "hidden"}
    (work / "lookups.pt").unlink()
    (work / "out/training.json").unlink()
    assert run(work, *more, "2", "--stop-after", "2") == {}
    resumed = run(work, *more, "2", "--workers", "2")  # which changes nothing
    assert losses(resumed) == losses(whole)


def test_a_run_of_some_time_ends_with_it_and_goes_through_its_windows(tmp_path):
    options = ["--minutes", "0.05", "--growth", "0:128,0.5:256", "--log-every", "1"]
    log = run(tmp_path / "work", *options)["log"]
    assert [log[0]["window"], log[-1]["window"]] == [128, 256]
    assert log[-1]["tokens"] == 512 * log[-1]["step"]


def test_the_learning_rate_falls_with_the_time():
    training = load_script("train_calf")
    options = [
        "--data",
        "x",
        "--minutes",
        "2",
        "--decay",
        "0.5",
        "--lr",
        "1",
        "--warmup-steps",
        "2",
    ]
    pace = training.Pace(training.make_parser().parse_args(options), seconds_before=90.0)
    assert pace.learning_rate(0) == pytest.approx(0.5, abs=0.01)
    assert pace.learning_rate(1000) == pytest.approx(0.5, abs=0.01)
    assert pace.progress(5) == pytest.approx(0.75, abs=0.01)
